"""Shape parameters of a packed unit, and their encoding for ops."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import lru_cache
from itertools import islice
from typing import Any

# Types of fields with two numbers or a list; kernels and encoded units have one number for every other field.
Pair = tuple[int, int]
Rates = tuple[int, ...]
# Encodes padding=None.
SAME_PADDING = (-1, -1)
# The tensors of a unit, in the order used everywhere.
PARAMETERS = ('bits', 'scale', 'bias', 'norm_scale', 'norm_shift', 'sign_scale', 'sign_shift')


class Residual(IntEnum):
    """The residual that is added to the output of a unit; numbers as in csrc/mmgroupnet.h."""

    NONE = 0
    INPUT = 1
    SHORTCUT = 2

    def of(self, x: Any, shortcut: Any) -> Any:
        """The residual: nothing, the unit's input or the block's shortcut."""
        return (None, x, shortcut)[self]


class Connection(IntEnum):
    """How a block computes the inputs of its K branches; numbers as in csrc/mmgroupnet.h."""

    SEPARATE = 0  # Each branch reads its own map.
    BROADCAST = 1  # The input is one map, which all branches read.
    MERGED = 2  # All branches read the merged map.
    GATED = 3  # gate * branch + (1 - gate) * merged.


@dataclass(frozen=True)
class UnitGeometry:
    """Shape parameters of a packed unit, in the order of ``mmg_unit`` in csrc/mmgroupnet.h.

    Args:
        num_bases: Number K of branches.
        in_channels, out_channels: Channels of one branch.
        groups: Groups inside every branch.
        kernel_size, stride: (height, width) pairs.
        padding: A (height, width) pair; None for ``dilation * (kernel_size - 1) / 2``, computed for each branch.
        padding_value: +1, -1 or 0.
        dilations: K rates.
        shares_weights: All branches have the weights, scales and norms of one.
        merges: The K outputs, all computed from one input branch, are added up (layer-wise decomposition).
        relu: Whether a ReLU is in front of the norm.
        residual: The map that is added at the end.
    """

    num_bases: int
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: Pair
    stride: Pair
    padding: Pair | None
    padding_value: int
    dilations: Rates
    shares_weights: bool = False
    merges: bool = False
    relu: bool = False
    residual: Residual = Residual.NONE

    @property
    def weight_rows(self) -> int:
        """Rows of the packed weights, one for each output channel of each base."""
        return self.out_channels * (1 if self.shares_weights else self.num_bases)

    @property
    def row_bits(self) -> int:
        """Weights of one output channel, in the order (kh, kw, channel)."""
        return self.kernel_size[0] * self.kernel_size[1] * (self.in_channels // self.groups)

    @property
    def sums_fit_int16(self) -> bool:
        """Whether the sum of one output channel fits 16 bits."""
        return self.row_bits <= 32767

    @property
    def is_strided_pointwise(self) -> bool:
        """Whether it is a strided 1x1 convolution."""
        return self.kernel_size == (1, 1) and self.stride != (1, 1)

    def pad_of(self, branch: int) -> tuple[int, int]:
        """Rows and columns of padding on each side for a branch."""
        if self.padding is not None:
            return self.padding
        (height, width), rate = self.kernel_size, self.dilations[branch]
        return rate * (height - 1) // 2, rate * (width - 1) // 2

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of this height and width.

        Raises:
            ValueError: If the map is smaller than the kernel, or the branches would differ in size.
        """
        # This check does not use the size of the input, which may be symbolic.
        margins = {
            tuple(2 * pad - rate * (kernel - 1) for pad, kernel in zip(self.pad_of(k), self.kernel_size, strict=True))
            for k, rate in enumerate(self.dilations)
        }
        if len(margins) > 1:
            raise ValueError(f'dilations={self.dilations} differ: padding={self.padding} gives maps of different size')
        (margin,) = margins
        rows, columns = ((given + margin[i] - 1) // self.stride[i] + 1 for i, given in enumerate((height, width)))
        if rows < 1 or columns < 1:
            raise ValueError(
                f'a map of {height}x{width} is smaller than the kernel: kernel_size={self.kernel_size}, '
                f'dilations={self.dilations}, padding={self.padding}'
            )
        return rows, columns

    def branches(self, given: int) -> int:
        """Branches of the output for an input of ``given`` branches (with 1, all read the same map)."""
        return 1 if self.merges else given if self.shares_weights else self.num_bases

    def encode(self) -> list[int]:
        """The parameters as one flat list of ints for the ops."""
        flat: list[int] = []
        for field in fields(self):
            value = getattr(self, field.name)
            value = SAME_PADDING if value is None else value
            flat += value if isinstance(value, tuple) else [int(value)]
        return flat

    @staticmethod
    @lru_cache(maxsize=4096)
    def decode(numbers: tuple[int, ...]) -> 'tuple[UnitGeometry, ...]':
        """Decodes the units in a sequence that concatenates several."""
        kinds = [field.type for field in fields(UnitGeometry)][1:]
        rest = iter(numbers)
        # A unit's first number is its number of branches; the others are read inside the loop.
        return tuple(
            UnitGeometry(num_bases, *[_decode_field(kind, rest, num_bases) for kind in kinds]) for num_bases in rest
        )


def _decode_field(kind: Any, numbers: Iterator[int], num_bases: int) -> Any:
    if kind == Rates:
        return tuple(islice(numbers, num_bases))
    if kind in (Pair, Pair | None):
        pair = (next(numbers), next(numbers))
        return None if pair == SAME_PADDING else pair
    return kind(next(numbers))
