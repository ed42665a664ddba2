"""Replaces the binary layers of a trained model by their packed twins."""

import copy
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmgroupnet.deploy.packed_layers import (
    PackedBlock,
    PackedChain,
    PackedFloatShortcut,
    PackedLinear,
    PackedMerge,
    PackedTower,
    PackedUnit,
)
from mmgroupnet.errors import UserError
from mmgroupnet.layers import (
    BinaryConv2d,
    BinaryLinear,
    InPlaceMerge,
    MeanMerge,
    Merge,
    RealValuedSkip,
    ScaledMerge,
    SoftGate,
    guard_foreign_code,
    is_as_written,
    is_guard,
)
from mmgroupnet.models.backbones.groupnet_block import (
    BroadcastConnection,
    GroupNetBlock,
    MergedConnection,
    SeparateConnection,
)
from mmgroupnet.ops import Connection, Residual, pack_weight
from mmgroupnet.quantizers import SignActivation, is_standard_sign

if find_spec('mmdet') is not None:
    from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryTower
else:  # There are no towers.
    BinaryTower = ()


@dataclass(frozen=True)
class PackedLayer:
    """Result of packing one binary conv.

    Args:
        name: Its name in the model.
        problem: Why it was not packed; None where it was.
        bytes_before: Bytes of its latent weights.
        bytes_after: Bytes of its weights now.
    """

    name: str
    problem: str | None
    bytes_before: int
    bytes_after: int


class NotPackable(Exception):
    """A layer cannot be packed; the message says why."""


def pack(model: nn.Module) -> nn.Module:
    """Packs a model: a copy of it on the CPU, in float32 and evaluation mode, whose binary layers are packed twins; the
    rest stays torch's, in channels_last.

    Args:
        model: A trained model with binary layers of mmgroupnet. It is left as it is.

    Returns:
        The copy.

    Raises:
        UserError: If the model has no binary layers.
    """
    return pack_and_report(model)[0]


@torch.no_grad()
def pack_and_report(model: nn.Module) -> tuple[nn.Module, list[PackedLayer]]:
    """As :func:`pack`; also returns one :class:`PackedLayer` per binary conv.

    Args:
        model: A trained model with binary layers of mmgroupnet. It is left as it is.

    Returns:
        The copy, and the layers in the order of the model.

    Raises:
        UserError: If the model has no binary layers.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}
    if not convs:
        raise UserError(f'model={type(model).__name__}: it has no binary layers of mmgroupnet to pack')
    packing = _Packing()
    packed = packing.twin(copy.deepcopy(model).cpu().float().eval(), '').eval()
    layers = []
    for name, conv in convs.items():
        before = conv.weight.numel() * conv.weight.element_size()
        problem = packing.problems.get(name)
        after = before if problem else len(conv.weight) * -(-conv.weight[0].numel() // 8)
        layers.append(PackedLayer(name, problem, before, after))
    # Packed layers read and write channels_last: the float ones between them need not turn their maps around.
    packed = packed.to(memory_format=torch.channels_last)
    guard_foreign_code(packed)
    return packed, layers


class _Packing:
    """The packing of one model.

    Attributes:
        problems: Why a binary conv was not packed, by its name.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._twins: dict[nn.Module, nn.Module] = {}
        self._bits: dict[nn.Module, Tensor] = {}

    def twin(self, module: nn.Module, name: str) -> nn.Module:
        """The packed twin of a module, or the module itself with its children packed. One that has several names stays
        one."""
        if module not in self._twins:
            self._twins[module] = self._pack(module, name)
        return self._twins[module]

    def bits(self, conv: BinaryConv2d, signs: Tensor) -> Tensor:
        """Packed weights of a conv. One that stands in several places, such as a conv of all pyramid levels with norms
        for each, is stored once."""
        if conv not in self._bits:
            self._bits[conv] = pack_weight(signs)
        return self._bits[conv]

    def _pack(self, module: nn.Module, name: str) -> nn.Module:
        for kind, make in _TWINS:
            if not isinstance(module, kind):
                continue
            try:
                _refuse_hooks(module)
                return make(self, module)
            except NotPackable as error:
                if isinstance(module, BinaryConv2d):
                    self.problems[name] = str(error)
                    return module
                break  # Perhaps its parts can be packed one by one.
        for child_name, child in module._modules.items():  # named_children() leaves out second names
            if child is not None:
                module._modules[child_name] = self.twin(child, f'{name}.{child_name}' if name else child_name)
        return module


def _refuse_hooks(module: nn.Module) -> None:
    """Refuses a module whose twin would lose hooks."""
    for part in module.modules():
        if not all(map(is_guard, (*part._forward_hooks.values(), *part._forward_pre_hooks.values()))):
            raise NotPackable(f'{type(part).__name__} has hooks, which its packed twin would not call')


def can_fold(norm: nn.Module) -> bool:
    return is_as_written(norm, nn.BatchNorm2d, nn.SyncBatchNorm) and norm.running_mean is not None


def fold_norm(norm: nn.Module) -> dict[str, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, ``scale * x + shift``."""
    if not can_fold(norm):
        raise NotPackable(f'{type(norm).__name__} is no batch norm with running statistics')
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return dict(norm_scale=scale, norm_shift=shift)


def _sign_parameters(conv: BinaryConv2d, input_norm: nn.Module | None) -> dict[str, Tensor]:
    """Scale and shift of the input in front of its sign."""
    activation = conv.activation
    if not isinstance(activation, SignActivation):
        raise NotPackable(f'{type(activation).__name__} is no sign: its activations are real-valued')
    if not is_standard_sign(activation):
        raise NotPackable(f'{type(activation).__name__} has a forward of its own')
    parameters = {}
    if input_norm is not None:
        norm = fold_norm(input_norm)
        parameters = dict(sign_scale=norm['norm_scale'], sign_shift=norm['norm_shift'])
    shift = activation.shift_of_channels()
    if shift is not None:
        parameters['sign_shift'] = shift + parameters.get('sign_shift', 0)
    return parameters


def _signs_and_magnitude(conv: BinaryConv2d) -> tuple[Tensor, Tensor]:
    """Weights of one magnitude per output channel, whatever quantizer makes them, and that magnitude."""
    weight = conv.weight_quantizer(conv.weight, conv.num_bases).detach()
    magnitude = weight.flatten(1).abs()
    scale = magnitude.amax(1)
    # Many write straight-through estimators as sign + w - w.detach(), which is rounded.
    if not torch.allclose(magnitude, scale.view(-1, 1), rtol=1e-5, atol=0):
        problem = 'gives weights of more than one magnitude per output channel'
        if torch.equal(weight, conv.weight):
            problem = 'has no signs: its weights are real-valued'
        raise NotPackable(f'{type(conv.weight_quantizer).__name__} {problem}')
    return weight, scale


def _pack_unit(
    packing: _Packing,
    conv: nn.Module,
    norm: nn.Module | None = None,
    relu: bool = False,
    residual: Residual = Residual.NONE,
    shared_by: int | None = None,
    folds_input_norm: bool = True,
) -> PackedUnit:
    """A conv and what follows it.

    Args:
        packing: The packing of the model.
        conv: The conv.
        norm, relu, residual: What follows it. Default: nothing.
        shared_by: Number of branches that share the conv. Default: None, each has weights of its own.
        folds_input_norm: Whether the norm in front of the sign is part of the unit. Default: True.
    """
    if not isinstance(conv, BinaryConv2d):
        raise NotPackable(f'{type(conv).__name__} is no binary conv')
    if not is_as_written(conv, BinaryConv2d, BinaryLinear) or conv.has_own_weight:
        raise NotPackable(f'{type(conv).__name__} has a forward of its own')
    weight, scale = _signs_and_magnitude(conv)
    if conv.is_merged:
        scale = scale * conv.merge.weights(scale).repeat_interleave(conv.out_channels)
    bias = None if conv.bias is None else conv.bias.detach()
    input_norm = conv.input_norm if folds_input_norm else None
    parameters = dict(bits=packing.bits(conv, weight), scale=scale, bias=bias, **_sign_parameters(conv, input_norm))
    if norm is not None:
        parameters.update(fold_norm(norm))
        if conv.bias is None and not conv.is_merged:
            # norm(relu(scale * x)) = (norm_scale * scale) * relu(x) + norm_shift: no magnitude is negative.
            parameters['norm_scale'] = parameters['norm_scale'] * scale
            del parameters['scale']
    geometry = conv.geometry(shared_by is not None, relu, residual)
    return PackedUnit(geometry, parameters, shared_by or 1)


def _pack_merge(packing: _Packing, merge: Merge) -> PackedMerge:
    if not is_as_written(merge, MeanMerge, ScaledMerge, InPlaceMerge):
        raise NotPackable(f'{type(merge).__name__} has a forward of its own')
    scales = None if isinstance(merge, MeanMerge) else merge.weights(torch.empty(0))
    return PackedMerge(merge.num_bases, scales, isinstance(merge, InPlaceMerge))


def _pack_shortcut(packing: _Packing, shortcut: nn.Sequential, num_bases: int) -> nn.Module:
    """The twin of a (pooling,) conv and norm that K branches share; it takes the branches folded, as they are."""
    *pooling, conv, norm = (layer for layer in shortcut if not isinstance(layer, nn.Identity))
    if isinstance(conv, BinaryConv2d):
        twin = _pack_unit(packing, conv, norm, shared_by=num_bases)
    else:
        folded = fold_norm(norm)
        weight = conv.weight.flatten(1) * folded['norm_scale'].unsqueeze(1)
        twin = PackedFloatShortcut(weight, folded['norm_shift'], conv.stride)
    return nn.Sequential(*pooling, twin) if pooling else twin


def _pack_block(packing: _Packing, block: GroupNetBlock) -> PackedBlock:
    if not (is_as_written(block, GroupNetBlock) and block.is_as_written):
        raise NotPackable(f'{type(block).__name__} or one of its parts has a forward of its own')
    num_bases = block.merge.num_bases
    gate = None
    connection = block.connection
    if isinstance(connection, SoftGate):
        kind = Connection.GATED
        gate = connection.theta.sigmoid().expand(num_bases).clone()
    else:
        kind = {
            SeparateConnection: Connection.SEPARATE,
            BroadcastConnection: Connection.BROADCAST,
            MergedConnection: Connection.MERGED,
        }[type(connection)]
    units = [_pack_unit(packing, *unit) for unit in block.chain().units]
    shortcut = None if block.shortcut is None else _pack_shortcut(packing, block.shortcut, num_bases)
    merge = _pack_merge(packing, block.merge)
    return PackedBlock(merge=merge, connection=kind, num_bases=num_bases, units=units, gate=gate, shortcut=shortcut)


def _pack_tower(packing: _Packing, tower: 'BinaryTower') -> PackedTower:
    if not (is_as_written(tower, BinaryTower) and tower.is_as_written):
        raise NotPackable(f'{type(tower).__name__} or one of its parts has a forward of its own')
    num_bases = tower.merge.num_bases
    levels = []
    for level in range(len(tower.input_norms)):
        units = [_pack_unit(packing, *unit) for unit in tower.chain(level).units]
        levels.append(PackedChain(Connection.BROADCAST, num_bases, units))
    return PackedTower(tower.input_norms, levels, _pack_merge(packing, tower.merge))


def _pack_apart(packing: _Packing, conv: BinaryConv2d) -> tuple[nn.Module | None, PackedUnit]:
    """A conv, and the norm in front of its sign where that cannot be folded into it: it stays what it is."""
    norm = conv.input_norm
    if norm is None or can_fold(norm):
        return None, _pack_unit(packing, conv)
    return norm, _pack_unit(packing, conv, folds_input_norm=False)


def _pack_conv(packing: _Packing, conv: BinaryConv2d) -> nn.Module:
    norm, unit = _pack_apart(packing, conv)
    return unit if norm is None else nn.Sequential(norm, unit)


def _pack_linear(packing: _Packing, linear: BinaryLinear) -> PackedLinear:
    return PackedLinear(*_pack_apart(packing, linear))


def _pack_conv_module(packing: _Packing, module: ConvModule, residual: Residual = Residual.NONE) -> PackedUnit:
    if not isinstance(module.conv, BinaryConv2d):
        raise NotPackable('its conv is not binary')
    if type(module).forward is not ConvModule.forward:
        raise NotPackable(f'{type(module).__name__} computes something of its own')
    if module.order != ('conv', 'norm', 'act') or module.with_spectral_norm or module.with_explicit_padding:
        raise NotPackable(f'order={module.order}')
    if module.with_activation and (module.with_norm or not is_as_written(module.activate, nn.ReLU)):
        raise NotPackable('an activation follows its norm')
    norm = module.norm if module.with_norm else None
    return _pack_unit(packing, module.conv, norm, module.with_activation, residual)


def _pack_skip(packing: _Packing, skip: RealValuedSkip) -> PackedUnit:
    if not (is_as_written(skip, RealValuedSkip) and isinstance(skip.module, ConvModule)):
        raise NotPackable(f'it goes around a {type(skip.module).__name__}')
    return _pack_conv_module(packing, skip.module, Residual.INPUT)


_TWINS = (
    (GroupNetBlock, _pack_block),
    (BinaryTower, _pack_tower),
    (RealValuedSkip, _pack_skip),
    (ConvModule, _pack_conv_module),
    (BinaryLinear, _pack_linear),
    (BinaryConv2d, _pack_conv),
    (Merge, _pack_merge),
)
