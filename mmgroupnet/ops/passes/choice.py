"""The choice of a backend."""

import logging
import os
from functools import cache

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmgroupnet.errors import UserError
from mmgroupnet.ops import kernels
from mmgroupnet.ops.passes.kernel_passes import KernelPasses
from mmgroupnet.ops.passes.protocol import Passes
from mmgroupnet.ops.passes.torch_passes import TorchPasses
from mmgroupnet.ops.precision import autocast_dtype, without_autocast

# Names the backend for devices other than the CPU: torch (the default) or triton. The Triton kernels have not run on a
# GPU yet: tests run them in Triton's interpreter and compile them for four kinds of GPUs.
ENVIRONMENT_VARIABLE = 'MMGROUPNET_PASSES'
_BACKENDS = ('torch', 'triton')
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The lowest compute capability with bfloat16 and TF32.
_CAPABILITY = (8, 0)


def choose_passes(x: Tensor, weight: Tensor, part: object) -> Passes:
    """The backend for an input and latent weights; errors name ``part``, their layer.

    The CPU's kernels compute in float32, even under autocast. Only the gradients of convolutions and full-precision
    shortcuts are bfloat16 if the input or autocast is, which saves time on processors with instructions for it; others
    would emulate it.

    Raises:
        ValueError: If no backend computes in the dtype of the input or of autocast.
        UserError: If :data:`ENVIRONMENT_VARIABLE` does not name a backend.
    """
    dtype = autocast_dtype(x) or x.dtype
    if dtype not in _DTYPES or x.dtype not in _DTYPES:
        what = 'autocast' if x.dtype in _DTYPES else 'inputs'
        raise ValueError(f'{part} under {what} of {dtype}: it trains in {", ".join(map(str, _DTYPES))}')
    if torch.float64 not in (dtype, weight.dtype) and x.numel() and wants_triton(x.device, dtype):
        from mmgroupnet.ops.passes.triton_passes import TritonPasses

        return TritonPasses(dtype)
    fits_kernels = x.device.type == 'cpu' and weight.dtype == torch.float32 and x.dtype != torch.float64
    if not fits_kernels or kernels.library() is None:
        return TorchPasses(dtype)
    is_half = dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return KernelPasses(torch.bfloat16 if is_half else torch.float32)


def wants_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton's kernels run on a device: they were requested and work there.

    Raises:
        UserError: If :data:`ENVIRONMENT_VARIABLE` does not name a backend.
    """
    name = os.environ.get(ENVIRONMENT_VARIABLE) or _BACKENDS[0]
    if name not in _BACKENDS:
        raise UserError(f'{ENVIRONMENT_VARIABLE}={name}: give {" or ".join(_BACKENDS)}')
    return name == 'triton' and triton_works(device, dtype)


@cache
def triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton's kernels run on a device, for convolutions in a dtype; if not, one warning says why.

    On a GPU they are tested before the first step by running them.
    """
    reason = _why_not_triton(device, dtype)
    if reason is not None:
        print_log(
            f'{ENVIRONMENT_VARIABLE}=triton, but {reason}: layers train without Triton on {device}',
            logger='current',
            level=logging.WARNING,
        )
    return reason is None


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ('cuda', 'cpu'):
        return f'it has no backend for {device.type}'
    try:
        import triton
    except ImportError as error:
        return f'it is not installed ({error})'
    if device.type == 'cpu':
        return None if triton.knobs.runtime.interpret else 'on the CPU it runs with TRITON_INTERPRET=1 only'
    return _failure_on_gpu(device, dtype)


def _failure_on_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels do not run on a GPU, or give other numbers than torch."""
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f'a GPU of compute capability {".".join(map(str, capability))} is older than 8.0'
    from mmgroupnet.ops.passes.self_test import compare_with_torch

    try:
        with torch.no_grad(), without_autocast(device):
            compare_with_torch(device, dtype)
    except Exception as error:  # a compiler may raise anything
        first_line = (str(error).splitlines() or [''])[0]
        return f'its kernels fail on {torch.cuda.get_device_name(device)} ({type(error).__name__}: {first_line})'
    return None
