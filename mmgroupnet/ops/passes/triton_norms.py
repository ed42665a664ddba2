"""Batch norms of lean training by Triton's kernels: sums over parts of the pixels, which other passes also need, and
the arithmetic over channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgroupnet.ops.kernels import count_pixels, nhwc
from mmgroupnet.ops.passes import triton_launch
from mmgroupnet.ops.passes import triton_norm_kernels as kernels
from mmgroupnet.ops.passes.protocol import Running
from mmgroupnet.ops.passes.triton_launch import BLOCK_C, BLOCK_P, count_parts, count_tiles


def moments_of_parts(y: Tensor, relu: bool) -> tuple[Tensor, int]:
    """Means of r and sums of squares around them, ``(2, parts, K*C)``, of parts of the pixels, and their number."""
    channels, parts = y.shape[1], count_parts(y, y.shape[1])
    partial = torch.empty(2, parts, channels, device=y.device)
    triton_launch.launch(
        kernels.moments_kernel,
        (count_tiles(channels, BLOCK_C), parts),
        y,
        partial,
        count_pixels(y),
        channels,
        parts,
        RELU=relu,
        BLOCK_P=BLOCK_P,
        BLOCK_C=BLOCK_C,
    )
    return partial, parts


def gradient_sums_of_parts(
    gradient: Tensor, y: Tensor, relu: bool, norm_channels: int, norm: Sequence[Tensor] | None
) -> tuple[Tensor, int]:
    channels, parts = y.shape[1], count_parts(y, y.shape[1])
    partial = torch.empty(2, parts, channels, device=y.device)
    triton_launch.launch(
        kernels.gradient_sums_kernel,
        (count_tiles(channels, BLOCK_C), parts),
        nhwc(gradient),
        y,
        *((partial,) * 3 if norm is None else norm),
        partial,
        count_pixels(y),
        channels,
        parts,
        norm_channels,
        0 if norm is None else norm[2].stride(0),
        RELU=relu,
        IS_NORMED=norm is not None,
        BLOCK_P=BLOCK_P,
        BLOCK_C=BLOCK_C,
    )
    return partial, parts


class TritonNormPasses:
    """Arithmetic of batch norms by Triton's kernels, see :class:`mmgroupnet.ops.passes.NormPasses`."""

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
        y, channels = nhwc(y), y.shape[1] // branches
        found, vectors = (torch.empty(2, size, device=y.device) for size in (channels, y.shape[1]))
        partial, parts = moments_of_parts(y, relu) if uses_batch else (found, 1)
        moves = running is not None and running.moves
        momentum = None if running is None else running.momentum
        tracked = None if running is None else running.tracked
        is_cumulative = False
        if moves and momentum is None and tracked is not None:
            tracked.add_(1)
            is_cumulative = True
        nothing = found  # placeholder for arguments that a kernel does not read
        triton_launch.launch(
            kernels.statistics_kernel,
            (count_tiles(channels, BLOCK_C),),
            partial,
            scale,
            nothing if weight is None else weight,
            nothing if bias is None else bias,
            nothing if running is None else running.mean,
            nothing if running is None else running.var,
            nothing if tracked is None else tracked,
            *found,
            *vectors,
            count_pixels(y),
            parts,
            branches,
            channels,
            scale.stride(0),
            float(eps),
            0.0 if not moves or momentum is None else float(momentum),
            USES_BATCH=uses_batch,
            HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None,
            MOVES=moves,
            COUNTS=moves and tracked is not None and not is_cumulative,
            IS_CUMULATIVE=is_cumulative,
            BLOCK_G=kernels.PARTS,
            BLOCK_P=BLOCK_P,
            BLOCK_C=BLOCK_C,
        )
        return (*found, vectors)

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
        y, channels = nhwc(y), y.shape[1] // branches
        partial, parts = gradient_sums_of_parts(gradient, y, relu, channels, (*statistics, scale))
        of_norm, vectors = (torch.empty(size, device=y.device) for size in ((2, channels), (3, y.shape[1])))
        triton_launch.launch(
            kernels.norm_gradient_kernel,
            (count_tiles(channels, BLOCK_C),),
            partial,
            *statistics,
            scale,
            scale if weight is None else weight,
            *of_norm,
            *vectors,
            count_pixels(y),
            parts,
            branches,
            channels,
            scale.stride(0),
            USES_BATCH=uses_batch,
            HAS_WEIGHT=weight is not None,
            BLOCK_G=kernels.PARTS,
            BLOCK_C=BLOCK_C,
        )
        return (*of_norm, vectors)
