"""The blocks of Group-Net: K residual blocks side by side, and the connections in front of them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from mmcv.cnn import build_conv_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmgroupnet.layers import (
    Chain,
    ChainUnit,
    Merge,
    SoftGate,
    broadcast,
    build_branch_norm,
    can_run_chain,
    is_as_written,
    raise_packed,
    run_chain,
    share,
    trace_as_leaf,
)
from mmgroupnet.layers.lean.path import wants_gradient
from mmgroupnet.layers.packed import (
    NotPackable,
    Packable,
    PackedBlock,
    Packing,
    find_twin,
    pack_shortcut,
    pack_unit,
)
from mmgroupnet.ops import Connection, Residual
from mmgroupnet.ops.precision import wide


class MergedConnection(nn.Module):
    """Connection in front of every block of GBD v1 and every stage of v2: each branch reads the merged map of all."""

    def forward(self, branches: Tensor, merge: Merge) -> Tensor:
        return broadcast(merge(branches), merge.num_bases)

    def gate_and_scales(self, branches: Tensor, merge: Merge) -> tuple[Tensor, Tensor]:
        """A closed gate (zeros) and the scales of the merge, both ``(K,)``, see :func:`run_chain`."""
        scales = merge.weights(branches.new_empty(0, dtype=wide(branches.dtype)))
        return torch.zeros_like(scales), scales


class BroadcastConnection(nn.Module):
    """Connection behind the stem: each branch reads the stem's map."""

    def __init__(self, num_bases: int) -> None:
        super().__init__()
        self.num_bases = num_bases

    def forward(self, x: Tensor, merge: Merge | None) -> Tensor:
        return broadcast(x, self.num_bases)

    def gate_and_scales(self, branches: Tensor, merge: Merge | None) -> tuple[None, None]:
        """There is neither gate nor merge."""
        return None, None


class SeparateConnection(nn.Module):
    """Connection inside the chains of GBD v2 and v3: each branch reads its own map."""

    def forward(self, branches: Tensor, merge: Merge) -> Tensor:
        return branches

    def gate_and_scales(self, branches: Tensor, merge: Merge) -> tuple[None, None]:
        """There is neither gate nor merge."""
        return None, None


_CONNECTIONS = {
    SeparateConnection: Connection.SEPARATE,
    BroadcastConnection: Connection.BROADCAST,
    MergedConnection: Connection.MERGED,
}


class BinaryUnit(nn.Module):
    """Sign, binary conv, ReLU, norm (no sign sees a non-negative map), plus a residual.

    Args:
        in_channels: Input channels of one branch.
        out_channels: Output channels of one branch.
        kernel_size: Odd; the conv is padded to keep the size.
        num_branches: Number of branches folded into the channels.
        conv_cfg: Config of the binary conv.
        norm_cfg: Config of the norm.
        stride: Stride of the conv. Default: 1.
        dilation: Dilation of the conv, for all or for each of the branches. Default: 1.
        residual: The map that is added: the input, if the shapes allow a real-valued skip, or the shortcut of the
            block. Default: none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_branches: int,
        conv_cfg: dict,
        norm_cfg: dict,
        stride: int = 1,
        dilation: int | Sequence[int] = 1,
        residual: Residual = Residual.NONE,
    ) -> None:
        super().__init__()
        self.conv = build_conv_layer(
            conv_cfg, in_channels, out_channels, kernel_size, stride=stride, padding='same', dilation=dilation
        )
        self.relu = nn.ReLU()
        self.norm = build_branch_norm(norm_cfg, num_branches, out_channels)
        self.residual = residual

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        # A packed unit is one layer, so its state dict names no conv that would refuse the bits.
        if f'{prefix}bits' in state_dict:
            raise_packed(prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Runs the unit; ``shortcut`` is the block's shortcut, needed if it is the residual."""
        out = self.norm(self.relu(self.conv(x)))
        residual = self.residual.of(x, shortcut)
        return out if residual is None else out + residual


class GroupNetBlock(Packable):
    """K parallel residual blocks: connect, then (sign, conv, ReLU, norm, add) for each conv.

    It trains lean unless its convs do not allow it, see :func:`run_chain`.

    Args:
        connection: Computes the inputs of this block's branches from the outputs of the last block's branches.
        units: The convs of the branches.
        shortcut: Module that all branches share, for the skip around the block; None for the identity.
        merge: Merges the branches of this block, where a merged map is needed.
        with_cp: Recomputes the block in the backward pass to save memory; a lean block then recomputes its convs, too.
    """

    expansion: ClassVar[int]  # output channels of a branch, in multiples of the channels of its 3x3 convs

    def __init__(
        self,
        connection: nn.Module,
        units: Sequence[BinaryUnit],
        shortcut: nn.Sequential | None,
        merge: Merge,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.connection = connection
        self.units = nn.ModuleList(units)
        self.shortcut = shortcut
        self.merge = merge
        self.with_cp = with_cp

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.shortcut is None else share(self.shortcut, x, self.merge.num_bases)

    @staticmethod
    @abstractmethod
    def build_units(
        in_channels: int, channels: int, stride: int, dilation: int | Sequence[int], **kwargs
    ) -> list[BinaryUnit]:
        """Builds the units of one block.

        Args:
            in_channels: Input channels of one branch.
            channels: Channels of the 3x3 convs of one branch.
            stride, dilation: Stride of the block's strided conv, and dilation of its 3x3 convs.
            kwargs: As for :class:`BinaryUnit`.
        """

    def chain(self) -> Chain:
        """The units and the shortcut."""
        shortcut = None
        if self.shortcut is not None:
            *layers, norm = (layer for layer in self.shortcut if not isinstance(layer, nn.Identity))
            shortcut = ChainUnit(layers[0] if len(layers) == 1 else nn.Sequential(*layers), norm, relu=False)
        return Chain(
            tuple(ChainUnit(unit.conv, unit.norm, True, unit.residual) for unit in self.units),
            self.merge.num_bases,
            shortcut,
            recompute=self.with_cp,
        )

    @property
    def has_standard_parts(self) -> bool:
        """Whether the parts that a chain replaces compute the same as the classes in this file."""
        connections = (SoftGate, MergedConnection, BroadcastConnection, SeparateConnection)
        return is_as_written(self.connection, *connections) and all(
            is_as_written(unit, BinaryUnit) and is_as_written(unit.relu, nn.ReLU) for unit in self.units
        )

    def packed_twin(self, packing: Packing) -> PackedBlock:
        if not (is_as_written(self, GroupNetBlock) and self.has_standard_parts):
            raise NotPackable(f'{type(self).__name__} or one of its parts has a forward of its own')
        num_bases, gate = self.merge.num_bases, None
        if isinstance(self.connection, SoftGate):
            kind = Connection.GATED
            gate = self.connection.theta.sigmoid().expand(num_bases).clone()
        else:
            kind = next(kind for cls, kind in _CONNECTIONS.items() if isinstance(self.connection, cls))
        units = [pack_unit(packing, *unit) for unit in self.chain().units]
        shortcut = None if self.shortcut is None else pack_shortcut(packing, self.shortcut, num_bases)
        merge = self.merge.packed_twin(packing)
        return PackedBlock(merge, connection=kind, num_bases=num_bases, units=units, gate=gate, shortcut=shortcut)

    @trace_as_leaf
    def forward(self, branches: Tensor, last_merge: Merge | None) -> Tensor:
        """Connects and runs the branches.

        Args:
            branches: Outputs of the last block's branches, ``(N, K*C, H, W)``; for the first block the output of the
                stem.
            last_merge: Merges them.

        Returns: Outputs of this block's branches, ``(N, K*C', H', W')``, unmerged.
        """
        twin = find_twin(self, branches)
        if twin is not None:
            last_twin = find_twin(last_merge, branches) if isinstance(last_merge, Merge) else last_merge
            if (last_twin is None) == (last_merge is None):
                return twin(branches, last_twin)
        return self.merge.outputs_for_next(self._run(branches, last_merge))

    def _run(self, branches: Tensor, last_merge: Merge | None) -> Tensor:
        chain = self.chain()
        bypassed = [self.connection, *self.units, self.shortcut, last_merge]
        if self.has_standard_parts and can_run_chain(chain, branches, self, bypassed):
            return run_chain(chain, branches, *self.connection.gate_and_scales(branches, last_merge))

        def run(branches: Tensor) -> Tensor:
            x = self.connection(branches, last_merge)
            shortcut = self._shortcut(x)
            for unit in self.units:
                x = unit(x, shortcut)
            return x

        if self.with_cp and wants_gradient([branches]):  # an exported program has no backward pass
            return checkpoint(run, branches, use_reentrant=False)
        return run(branches)


class BasicBlock(GroupNetBlock):
    """Two 3x3 convs with a real-valued skip around each, as in Group-Net's released code."""

    expansion = 1

    @staticmethod
    def build_units(
        in_channels: int, channels: int, stride: int, dilation: int | Sequence[int], **kwargs
    ) -> list[BinaryUnit]:
        return [
            BinaryUnit(
                in_channels, channels, 3, stride=stride, dilation=dilation, residual=Residual.SHORTCUT, **kwargs
            ),
            BinaryUnit(channels, channels, 3, dilation=dilation, residual=Residual.INPUT, **kwargs),
        ]


class Bottleneck(GroupNetBlock):
    """1x1, 3x3, 1x1 convs, each with its own sign, ReLU, norm and, where shapes allow, skip, inside a shortcut."""

    expansion = 4

    @staticmethod
    def build_units(
        in_channels: int, channels: int, stride: int, dilation: int | Sequence[int], **kwargs
    ) -> list[BinaryUnit]:
        def skip_where(fits: bool) -> Residual:
            return Residual.INPUT if fits else Residual.NONE

        out_channels = channels * Bottleneck.expansion
        return [
            BinaryUnit(in_channels, channels, 1, residual=skip_where(in_channels == channels), **kwargs),
            BinaryUnit(
                channels, channels, 3, stride=stride, dilation=dilation, residual=skip_where(stride == 1), **kwargs
            ),
            BinaryUnit(channels, out_channels, 1, residual=Residual.SHORTCUT, **kwargs),
        ]
