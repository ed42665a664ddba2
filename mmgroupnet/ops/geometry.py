"""Shapes of a packed unit, and how an op is told of them."""

from dataclasses import astuple, dataclass
from enum import IntEnum
from functools import lru_cache


class Residual(IntEnum):
    """What is added to the output of a unit; numbers as in csrc/mmgroupnet.h."""

    NONE = 0
    INPUT = 1
    SHORTCUT = 2


class Connection(IntEnum):
    """How a block makes the inputs of its K branches; numbers as in csrc/mmgroupnet.h."""

    SEPARATE = 0  # As they come.
    BROADCAST = 1  # The input is one map, which all branches read.
    MERGED = 2  # All branches read the merged map.
    GATED = 3  # gate * branch + (1 - gate) * merged.


@dataclass(frozen=True)
class UnitGeometry:
    """Everything of a packed unit that is a plain number.

    Args:
        num_bases: Number K of branches.
        in_channels, out_channels: Channels of one branch.
        groups: Groups inside every branch.
        kernel_size, stride: (height, width) pairs.
        padding: A (height, width) pair; None: ``dilation * (kernel_size - 1) / 2``, for each branch its own.
        padding_value: +1, -1 or 0.
        dilations: K rates.
        shares_weights: All branches have the weights, scales and norms of one.
        merges: The K outputs, of one input branch, are added up (layer-wise decomposition).
        relu: Whether a ReLU stands in front of the norm.
        residual: What is added at the end.
    """

    num_bases: int
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | None
    padding_value: int
    dilations: tuple[int, ...]
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

    def pad_of(self, branch: int) -> tuple[int, int]:
        """Rows and columns that are padded on each side for a branch."""
        if self.padding is not None:
            return self.padding
        rate = self.dilations[branch]
        return tuple(rate * (size - 1) // 2 for size in self.kernel_size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for those of the input.

        Raises:
            ValueError: If the map is smaller than the kernel, or the branches would differ in size.
        """
        # What the size of the input does not enter: it may be a symbol.
        margins = {
            tuple(2 * pad - rate * (kernel - 1) for pad, kernel in zip(self.pad_of(k), self.kernel_size, strict=True))
            for k, rate in enumerate(self.dilations)
        }
        if len(margins) > 1:
            raise ValueError(f'dilations={self.dilations} differ: padding={self.padding} gives maps of different size')
        (margin,) = margins
        size = tuple((given + margin[i] - 1) // self.stride[i] + 1 for i, given in enumerate((height, width)))
        if size[0] < 1 or size[1] < 1:
            raise ValueError(
                f'a map of {height}x{width} is smaller than the kernel: kernel_size={self.kernel_size}, '
                f'dilations={self.dilations}, padding={self.padding}'
            )
        return size

    def branches(self, given: int) -> int:
        """Branches that the unit reads of a map of so many (1: all read the same), and those of its output."""
        return 1 if self.merges else given if self.shares_weights else self.num_bases

    def encode(self) -> list[int]:
        """The numbers as one flat list, which ops take."""
        flat = []
        for value in astuple(self):
            if value is None:
                flat += [-1, -1]
            elif isinstance(value, tuple):
                flat += value
            else:
                flat.append(int(value))
        return flat

    @staticmethod
    @lru_cache(maxsize=4096)
    def decode(numbers: tuple[int, ...]) -> 'tuple[UnitGeometry, ...]':
        """Reads back the units of a tuple that holds several, one behind the other."""
        units = []
        while numbers:
            num_bases, in_channels, out_channels, groups, kh, kw, sh, sw, ph, pw, padding_value = numbers[:11]
            dilations = numbers[11 : 11 + num_bases]
            shares_weights, merges, relu, residual = numbers[11 + num_bases : 15 + num_bases]
            numbers = numbers[15 + num_bases :]
            padding = None if ph < 0 else (ph, pw)
            units.append(
                UnitGeometry(
                    num_bases,
                    in_channels,
                    out_channels,
                    groups,
                    (kh, kw),
                    (sh, sw),
                    padding,
                    padding_value,
                    dilations,
                    bool(shares_weights),
                    bool(merges),
                    bool(relu),
                    Residual(residual),
                )
            )
        return tuple(units)
