"""The choice of a backend."""

import torch
from torch import Tensor

from mmgroupnet.ops import kernels
from mmgroupnet.ops.passes.kernel_passes import KernelPasses
from mmgroupnet.ops.passes.protocol import Passes
from mmgroupnet.ops.passes.torch_passes import TorchPasses
from mmgroupnet.ops.precision import autocast_dtype

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def choose_passes(x: Tensor, weight: Tensor, part: object) -> Passes:
    """The backend for an input and latent weights; ``part``, their layer, is named in an error.

    Half precision saves nothing on the CPU: there the kernels compute in float32, under autocast as well.

    Raises:
        ValueError: If no backend computes in the dtype of the input or of autocast.
    """
    dtype = autocast_dtype(x) or x.dtype
    if dtype not in _DTYPES or x.dtype not in _DTYPES:
        what = 'autocast' if x.dtype in _DTYPES else 'inputs'
        raise ValueError(f'{part} under {what} of {dtype}: it trains in {", ".join(map(str, _DTYPES))}')
    fits_kernels = x.device.type == 'cpu' and weight.dtype == torch.float32 and x.dtype != torch.float64
    return KernelPasses() if fits_kernels and kernels.library() is not None else TorchPasses(dtype)
