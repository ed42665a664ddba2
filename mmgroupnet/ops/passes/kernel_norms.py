"""Batch norms of lean training by the compiled kernels, on the CPU: the sums over pixels and the arithmetic over
channels in one call."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from mmgroupnet.ops import kernels
from mmgroupnet.ops.kernels import count_pixels, nhwc
from mmgroupnet.ops.passes.protocol import Running

_NO_RELU = -32768


def lowest(relu: bool) -> int:
    """A kernel's argument for the ReLU: the least value that r can have."""
    return 0 if relu else _NO_RELU


def _floats(vector: Tensor) -> Tensor:
    return vector.detach().float().contiguous()


class KernelNormPasses:
    """Arithmetic of batch norms by the compiled kernels, see :class:`mmgroupnet.ops.passes.NormPasses`; in double
    precision, except for inputs and outputs."""

    def statistics(
        self,
        y: Tensor,
        relu: bool,
        branches: int,
        scale: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running | None,
        eps: float,
        uses_batch: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        momentum: float | None = 0.0
        if running is not None and running.moves:
            momentum = running.momentum
            if running.tracked is not None:
                running.tracked.add_(1)
                momentum = 1 / int(running.tracked) if momentum is None else momentum
        buffers = () if running is None else (running.mean, running.var)
        vectors = [None if vector is None else _floats(vector) for vector in (scale, weight, bias)]
        of_running = [_floats(buffer) for buffer in buffers]
        norm = kernels.BatchNorm(
            y.shape[1] // branches,
            branches,
            uses_batch,
            eps,
            momentum or 0.0,
            *(kernels.pointer(vector) for vector in (*vectors, *of_running)),  # those left out are null
        )
        mean, inverse_deviation = torch.empty(2, norm.channels, dtype=torch.float64)
        affine = torch.empty(2, y.shape[1])
        kernels.loaded().mmg_norm_statistics(
            y.data_ptr(),
            lowest(relu),
            count_pixels(y),
            norm,
            mean.data_ptr(),
            inverse_deviation.data_ptr(),
            affine.data_ptr(),
            torch.get_num_threads(),
        )
        if momentum:
            for buffer, moved in zip(buffers, of_running, strict=True):
                if moved.data_ptr() != buffer.data_ptr():  # of another dtype
                    buffer.copy_(moved)
                else:
                    increment_version(buffer)
        return mean, inverse_deviation, affine

    def gradients(
        self,
        gradient: Tensor,
        y: Tensor,
        relu: bool,
        branches: int,
        statistics: tuple[Tensor, Tensor],
        scale: Tensor,
        weight: Tensor | None,
        uses_batch: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, vectors = nhwc(gradient), [None if vector is None else _floats(vector) for vector in (scale, weight)]
        norm = kernels.BatchNorm(
            y.shape[1] // branches, branches, uses_batch, 0.0, 0.0, *(kernels.pointer(vector) for vector in vectors)
        )
        of_weight, of_bias = torch.empty(2, norm.channels)
        of_y = torch.empty(3, y.shape[1])
        kernels.loaded().mmg_norm_gradients(
            gradient.data_ptr(),
            y.data_ptr(),
            lowest(relu),
            count_pixels(y),
            norm,
            *(values.data_ptr() for values in (*statistics, of_weight, of_bias, of_y)),
            torch.get_num_threads(),
        )
        return of_weight, of_bias, of_y
