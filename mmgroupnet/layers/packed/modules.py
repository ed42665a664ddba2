"""Packed twins of the binary layers, with bits instead of latent weights and the neighbouring layers fused in; and a
twin of the full-precision stem in front of them.

They hold the arguments of :func:`mmgroupnet.ops.run_block` and call it. They cannot be trained or moved to a GPU.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmgroupnet import ops
from mmgroupnet.layers.branches import broadcast
from mmgroupnet.layers.lean.path import is_as_written, is_hooked
from mmgroupnet.layers.observers import Observed, notify
from mmgroupnet.layers.packed.fold import can_fold, fold_norm
from mmgroupnet.layers.vectors import as_map, as_vectors
from mmgroupnet.ops import Connection, Residual, UnitGeometry
from mmgroupnet.ops.geometry import PARAMETERS
from mmgroupnet.ops.simulation import channelwise

_HALF_PRECISION = (torch.float16, torch.bfloat16)


class PackedModule(nn.Module):
    """Base of all packed layers: they stay on the CPU, in float32, and have no gradients."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'PackedModule':
        probe = fn(torch.empty(0))
        if probe.device.type not in ('cpu', 'meta'):
            raise RuntimeError(f'a packed model cannot be moved to {probe.device}: its kernels run only on the CPU')
        if probe.dtype != torch.float32:
            raise RuntimeError(f'a packed model cannot be converted to {probe.dtype}: its kernels compute in float32')
        return super()._apply(fn, recurse)

    def as_input(self, x: Tensor) -> Tensor:
        """Casts half precision (from float layers under autocast) to float32, and detaches.

        Raises:
            RuntimeError: If a model in training mode would need the gradient of the map.
        """
        if self.training and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f'{type(self).__name__} has no gradient, which the layers in front of it need in training mode: freeze '
                'them, or call eval()'
            )
        return (x.float() if x.dtype in _HALF_PRECISION else x).detach()


class PackedUnit(Observed, PackedModule):
    """One binary conv with the operations fused to it, ``norm(relu(scale * conv(sign(x)) + bias)) + residual``.

    Args:
        geometry: Its shape parameters.
        parameters: The tensors by name, see :func:`mmgroupnet.ops.run_block`; missing ones are None. Units that
            are given the same tensor share it.
        shared_by: Number of branches that share its weights. Default: 1.

    Attributes:
        sign_observer: Called in every forward pass with the signs of the input, True where one is +1, in the same way
            as the observer of :class:`mmgroupnet.layers.BinaryConv2d`. Default: None.

    Shape: as the layers that it replaces; the output is channels_last.
    """

    def __init__(self, geometry: UnitGeometry, parameters: dict[str, Tensor | None], shared_by: int = 1) -> None:
        super().__init__()
        self.geometry = geometry
        self.numbers = geometry.encode()
        self.shared_by = shared_by
        for name in PARAMETERS:
            value = parameters.get(name)
            self.register_buffer(name, None if value is None else value.contiguous())

    @property
    def parameters_of_op(self) -> list[Tensor | None]:
        """The tensors in the order of the op; None for missing ones."""
        return list(self._buffers.values())  # in the order in which they were registered

    def forward(self, x: Tensor) -> Tensor:
        x = self.as_input(x)
        given = x.shape[1] // self.geometry.in_channels
        branches = self.geometry.branches(given)
        self.observe(x)
        return PackedChain.run(x, Connection.SEPARATE, branches, [self])

    def observe(self, x: Tensor) -> None:
        """Calls the observer, if there is one, with the signs of an input in the layout of the original layer: one map
        for each branch, with branches that share weights as its batch."""
        if self.sign_observer is None:
            return
        g = self.geometry
        branches = g.branches(self.shared_by)
        if x.shape[1] < branches * g.in_channels:
            x = broadcast(x, branches)
        if g.shares_weights:
            x = x.unflatten(1, (-1, g.in_channels)).flatten(0, 1)
        notify(self, channelwise(x, self.sign_scale, self.sign_shift) >= 0)

    def extra_repr(self) -> str:
        g = self.geometry
        return (
            f'{g.in_channels}, {g.out_channels}, kernel_size={g.kernel_size}, stride={g.stride}, '
            f'dilations={g.dilations}, groups={g.groups}, num_bases={g.num_bases}, relu={g.relu}, '
            f'residual={g.residual.name}'
        )


class PackedLinear(PackedModule):
    """Binary linear layer.

    Args:
        norm: Norm in front of it that is not folded into it, or None.
        unit: A 1x1 conv, whose pixels are the vectors.

    Shape: ``(..., in_features)`` to ``(..., out_features)``.
    """

    def __init__(self, norm: nn.Module | None, unit: PackedUnit) -> None:
        super().__init__()
        self.norm = norm
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        given = x
        if self.norm is not None:
            x = self.norm(x.reshape(-1, x.shape[-1], 1, 1)).reshape(x.shape)
        return as_vectors(self.unit(as_map(x)), like=given)


class PackedMerge(PackedModule):
    """Merges K branches, ``(N, K*C, H, W)`` to ``(N, C, H, W)``.

    Args:
        num_bases: Number K of branches.
        scales: ``(K,)``; None: the mean.
        sums_in_place: The sum of all branches replaces the first one, see :class:`mmgroupnet.layers.InPlaceMerge`;
            ``scales`` then apply to the result. Default: False.
    """

    def __init__(self, num_bases: int, scales: Tensor | None, sums_in_place: bool = False) -> None:
        super().__init__()
        self.num_bases = num_bases
        self.register_buffer('scales', None if scales is None else scales.detach().clone())
        self.register_buffer('sums_in_place', torch.tensor(1) if sums_in_place else None)

    def outputs_for_next(self, branches: Tensor) -> Tensor:
        """Like :meth:`mmgroupnet.layers.Merge.outputs_for_next`; may overwrite ``branches``."""
        if self.sums_in_place is not None:
            first, *others = branches.chunk(self.num_bases, dim=1)
            for other in others:
                first += other
        return branches

    def forward(self, branches: Tensor) -> Tensor:
        branches = self.as_input(branches)
        if self.num_bases == 1 and self.scales is None:
            return branches
        return ops.connect(branches, self.num_bases, self.scales, None)


class PackedFloatShortcut(PackedModule):
    """Full-precision 1x1 conv with its norm, shared by all branches, as one matrix product: in channels_last, the
    branches of all pixels already are its rows.

    Args:
        weight: ``(out_channels, in_channels)``, including the norm's scale.
        bias: ``(out_channels,)``, the norm's shift.
        stride: (height, width).

    Shape: ``(N, K*in_channels, H, W)`` to ``(N, K*out_channels, H', W')``, for any K.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer('weight', weight.detach().clone())
        self.register_buffer('bias', bias.detach().clone())

    def forward(self, branches: Tensor) -> Tensor:
        pixels = branches[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        # Exported programs would keep a context even if it changes nothing.
        with torch.autocast('cpu', enabled=False) if torch.is_autocast_enabled('cpu') else nullcontext():
            out = F.linear(pixels.reshape(-1, self.weight.shape[1]), self.weight, self.bias)
        channels = branches.shape[1] // self.weight.shape[1] * self.weight.shape[0]  # -1 is ambiguous in an empty batch
        return out.view(*pixels.shape[:3], channels).permute(0, 3, 1, 2)


class PackedStem(nn.Sequential):
    """Full-precision layers that read the picture, in channels_last like the packed layers behind them.

    A max pooling and the batch norm behind it run in one pass.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        *others, pooling, norm = self
        for layer in others:
            x = layer(x)
        if x.dtype != torch.float32 or not self._can_fuse(pooling, norm):
            return norm(pooling(x))
        window = [*_pair(pooling.kernel_size), *_pair(pooling.stride), *_pair(pooling.padding)]
        folded = fold_norm(norm)
        return ops.max_pool(x.detach(), window, folded['norm_scale'].detach(), folded['norm_shift'].detach())

    @staticmethod
    def _can_fuse(pooling: nn.Module, norm: nn.Module) -> bool:
        if norm.training or not can_fold(norm) or is_hooked(pooling) or is_hooked(norm):
            return False
        is_pooling = is_as_written(pooling, nn.MaxPool2d)
        return is_pooling and not pooling.ceil_mode and _pair(pooling.dilation) == (1, 1)


class PackedChain(PackedModule):
    """A connection and consecutive units behind it, in one call.

    Args:
        connection: How the inputs of the branches are computed.
        num_bases: Number K of branches.
        units: The units.
        gate: ``(K,)``, in (0, 1), of a gated connection. Default: None.
        shortcut: A unit that computes the shortcut, or a module that takes all branches at once. Default: None.
    """

    def __init__(
        self,
        connection: Connection,
        num_bases: int,
        units: Iterable[PackedUnit],
        gate: Tensor | None = None,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.connection = connection
        self.num_bases = num_bases
        self.units = nn.ModuleList(units)
        self.shortcut = shortcut
        self.register_buffer('gate', gate)

    @staticmethod
    def run(
        x: Tensor,
        connection: Connection,
        num_bases: int,
        units: Iterable[nn.Module],
        merge_scales: Tensor | None = None,
        gate: Tensor | None = None,
        shortcut: PackedUnit | None = None,
        shortcut_map: Tensor | None = None,
    ) -> Tensor:
        """Calls the op, see :func:`mmgroupnet.ops.run_block`."""
        units = [*([] if shortcut is None else [shortcut]), *units]
        parameters = [parameter for unit in units for parameter in unit.parameters_of_op]
        return ops.run_block(
            x,
            int(connection),
            num_bases,
            merge_scales,
            gate,
            [number for unit in units for number in unit.numbers],
            [parameter for parameter in parameters if parameter is not None],
            [place for place, parameter in enumerate(parameters) if parameter is not None],
            shortcut is not None,
            shortcut_map,
        )

    def forward(self, branches: Tensor, last_merge: PackedMerge | None = None) -> Tensor:
        """Connects and runs the branches.

        Args:
            branches: Outputs of the last block's branches, ``(N, K*C, H, W)``.
            last_merge: Merges them. Default: None, for connections that do not merge.

        Returns: Outputs of the branches, ``(N, K*C', H', W')``, unmerged.
        """
        branches = self.as_input(branches)
        scales = None if last_merge is None else last_merge.scales
        connection, gate = self.connection, self.gate
        if self.num_bases == 1 and scales is None:
            # With one branch the merged map is the branch itself: x + gate * (x - x) = x.
            connection, gate = Connection.SEPARATE, None
        if self.shortcut is None or isinstance(self.shortcut, PackedUnit):
            out = self.run(branches, connection, self.num_bases, self.units, scales, gate, self.shortcut)
            self._observe(branches, connection, scales, gate, None)
            return out
        # Torch computes this shortcut and needs the connected map.
        if connection in (Connection.GATED, Connection.MERGED):
            branches = ops.connect(branches, self.num_bases, scales, gate)
            connection = Connection.SEPARATE if connection == Connection.GATED else Connection.BROADCAST
        shortcut_map = self.shortcut(branches)
        if connection == Connection.BROADCAST:
            shortcut_map = broadcast(shortcut_map, self.num_bases)
        out = self.run(branches, connection, self.num_bases, self.units, shortcut_map=shortcut_map)
        self._observe(branches, connection, None, None, shortcut_map)
        return out

    def _observe(
        self,
        x: Tensor,
        connection: Connection,
        merge_scales: Tensor | None,
        gate: Tensor | None,
        shortcut_map: Tensor | None,
    ) -> None:
        """Calls the units' observers, if there are any, with their signs. It runs the units one by one, since the op
        does not return the maps between them. The arguments are those of :meth:`run`."""
        shortcut = self.shortcut if isinstance(self.shortcut, PackedUnit) else None
        if all(unit is None or unit.sign_observer is None for unit in (*self.units, shortcut)):
            return
        if connection in (Connection.GATED, Connection.MERGED):
            x = ops.connect(x, self.num_bases, merge_scales, gate)
        if connection in (Connection.BROADCAST, Connection.MERGED):
            x = broadcast(x, self.num_bases)
        if shortcut is not None:
            shortcut.observe(x)
            shortcut_map = self.run(x, Connection.SEPARATE, self.num_bases, [shortcut])
        elif shortcut_map is None:
            shortcut_map = x
        for unit in self.units:
            unit.observe(x)
            added = shortcut_map if unit.geometry.residual == Residual.SHORTCUT else None
            x = self.run(x, Connection.SEPARATE, self.num_bases, [unit], shortcut_map=added)


class PackedBlock(PackedChain):
    """A Group-Net block with its merge, which passes the branches on and which the next block uses.

    Args:
        merge: Merges the branches of this block.
        kwargs: As for :class:`PackedChain`.
    """

    def __init__(self, merge: PackedMerge, **kwargs) -> None:
        super().__init__(**kwargs)
        self.merge = merge

    def forward(self, branches: Tensor, last_merge: PackedMerge | None = None) -> Tensor:
        return self.merge.outputs_for_next(super().forward(branches, last_merge))


class PackedTower(PackedModule):
    """Tower of binary branches; all pyramid levels share its convs, but each has its own norms.

    Args:
        input_norms: Norms of the input, one per level; they stay in full precision.
        levels: The chain of each level; the chains share their weights.
        merge: Merges the branches at the end.
    """

    def __init__(self, input_norms: nn.ModuleList, levels: Iterable[PackedChain], merge: PackedMerge) -> None:
        super().__init__()
        self.input_norms = input_norms
        self.levels = nn.ModuleList(levels)
        self.merge = merge

    def forward(self, feature_and_level: tuple[Tensor, int]) -> Tensor:
        """Maps ``((N, in_channels, H, W), level)`` to ``(N, channels, H, W)``."""
        x, level = feature_and_level
        return self.merge(self.levels[level](self.input_norms[level](x)))
