"""Launches of Triton's kernels: tiles of maps, and the grids of programs over them."""

from typing import Any

import torch
from torch import Tensor

from mmgroupnet.ops.kernels import count_pixels
from mmgroupnet.ops.passes.triton_kernels import TILE

BLOCK_P, BLOCK_C = TILE
# Number of programs of a kernel that sums: enough for every GPU, and the same on all, so that sums are reproducible.
PROGRAMS = 1024


def count_tiles(size: int, block: int) -> int:
    """Number of blocks that cover an axis."""
    return -(-size // block)


def grid_of(x: Tensor, channels: int, branches: int = 1) -> tuple[int, int]:
    """Programs of a kernel over the tiles of a map, and branches."""
    return count_tiles(channels, BLOCK_C) * count_tiles(count_pixels(x), BLOCK_P), branches


def count_parts(x: Tensor, channels: int) -> int:
    """Number of parts of the pixels that are summed separately."""
    return min(count_tiles(count_pixels(x), BLOCK_P), count_tiles(PROGRAMS, count_tiles(channels, BLOCK_C)))


def launch(kernel: Any, programs: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Launches a kernel on the device of its first tensor; see :func:`grid_of`."""
    first = next(value for value in arguments if isinstance(value, Tensor))
    if first.is_cuda:
        with torch.cuda.device(first.device):
            kernel[programs](*arguments, **constants)
    else:  # Triton's interpreter
        kernel[programs](*arguments, **constants)
