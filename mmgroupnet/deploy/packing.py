"""Replaces the binary layers of a trained model by their packed twins."""

import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgroupnet.deploy.packed_layers import (
    FloatShortcut,
    PackedBlock,
    PackedChain,
    PackedLinear,
    PackedMerge,
    PackedTower,
    PackedUnit,
)
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
)
from mmgroupnet.models.backbones.groupnet_resnet import (
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
    """What became of one binary conv.

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
        The copy. ``packed.packed_layers`` lists what became of every binary conv, :class:`PackedLayer` by
        :class:`PackedLayer`.

    Raises:
        ValueError: If the model has no binary layers.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}
    if not convs:
        raise ValueError(f'model={type(model).__name__}: it has no binary layers of mmgroupnet to pack')
    packed = copy.deepcopy(model).cpu().float().eval()
    problems: dict[str, str] = {}
    packed = _pack_module(packed, '', problems, {})
    layers = []
    for name, conv in convs.items():
        before = conv.weight.numel() * conv.weight.element_size()
        problem = problems.get(name)
        after = before if problem else len(conv.weight) * -(-conv.weight[0].numel() // 8)
        layers.append(PackedLayer(name, problem, before, after))
    packed.packed_layers = layers
    # Packed layers read and write channels_last: the float ones between them need not turn their maps around.
    packed = packed.to(memory_format=torch.channels_last)
    guard_foreign_code(packed)
    return packed


def _pack_module(
    module: nn.Module, name: str, problems: dict[str, str], twins: dict[nn.Module, nn.Module]
) -> nn.Module:
    """The packed twin of a module, or the module itself with its children packed.

    Args:
        module: The module.
        name: Its name in the model.
        problems: Takes why a binary conv was not packed, by its name.
        twins: What became of the modules so far: one that has several names stays one.
    """
    if module not in twins:
        twins[module] = _pack_new(module, name, problems, twins)
    return twins[module]


def _pack_new(
    module: nn.Module, name: str, problems: dict[str, str], twins: dict[nn.Module, nn.Module]
) -> nn.Module:
    """As :func:`_pack_module`, for one that was not seen yet."""
    for kind, make in _TWINS:
        if not isinstance(module, kind):
            continue
        try:
            return make(module)
        except NotPackable as error:
            if isinstance(module, BinaryConv2d):
                problems[name] = str(error)
                return module
            break  # Perhaps its parts can be packed one by one.
    for child_name, child in module._modules.items():  # named_children() leaves out second names
        if child is not None:
            twin = _pack_module(child, f'{name}.{child_name}' if name else child_name, problems, twins)
            module._modules[child_name] = twin
    return module


def _fold_norm(norm: nn.Module) -> dict[str, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, ``scale * x + shift``."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise NotPackable(f'{type(norm).__name__} is no batch norm with running statistics')
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return dict(norm_scale=scale, norm_shift=shift)


def _sign_parameters(conv: BinaryConv2d) -> dict[str, Tensor]:
    """Scale and shift of the input in front of its sign."""
    activation = conv.activation
    if not isinstance(activation, SignActivation):
        raise NotPackable(f'{type(activation).__name__} is no sign: its activations are real-valued')
    if not is_standard_sign(activation):
        raise NotPackable(f'{type(activation).__name__} has a forward of its own')
    parameters = {}
    if conv.input_norm is not None:
        norm = _fold_norm(conv.input_norm)
        parameters = dict(sign_scale=norm['norm_scale'], sign_shift=norm['norm_shift'])
    shift = activation.shift_of_channels()
    if shift is not None:
        parameters['sign_shift'] = shift + parameters.get('sign_shift', 0)
    return parameters


def _signs_and_scale(conv: BinaryConv2d) -> tuple[Tensor, Tensor]:
    """Weights of one magnitude per output channel, whatever quantizer makes them, and that magnitude."""
    weight = conv.weight_quantizer(conv.weight, conv.num_bases).detach()
    magnitude = weight.flatten(1).abs()
    scale = magnitude.amax(1)
    # Many write straight-through estimators as sign + w - w.detach(), which is rounded.
    if not torch.allclose(magnitude, scale.view(-1, 1), rtol=1e-5, atol=0):
        raise NotPackable(
            f'{type(conv.weight_quantizer).__name__} gives weights of more than one magnitude per output channel'
        )
    return weight, scale


def pack_unit(
    conv: BinaryConv2d,
    norm: nn.Module | None = None,
    relu: bool = False,
    residual: Residual = Residual.NONE,
    is_shared: bool = False,
) -> PackedUnit:
    """A conv and what follows it."""
    if not isinstance(conv, BinaryConv2d):
        raise NotPackable(f'{type(conv).__name__} is no binary conv')
    weight, scale = _signs_and_scale(conv)
    if conv.is_merged:
        scales = torch.full((conv.num_bases,), 1 / conv.num_bases)
        if isinstance(conv.merge, ScaledMerge):
            scales = conv.merge.scales.detach()
        scale = scale * scales.repeat_interleave(conv.out_channels)
    geometry = conv.geometry(is_shared, relu, residual)
    parameters = dict(bits=pack_weight(weight), scale=scale, bias=conv.bias, **_sign_parameters(conv))
    if norm is not None:
        parameters.update(_fold_norm(norm))
        if conv.bias is None and not conv.is_merged:
            # norm(relu(scale * x)) = (norm_scale * scale) * relu(x) + norm_shift: no magnitude is negative.
            parameters['norm_scale'] = parameters['norm_scale'] * scale
            del parameters['scale']
    unit = PackedUnit(geometry, parameters)
    # One that stands in several places, such as a conv of all pyramid levels with norms for each, is stored once.
    unit.bits = conv.__dict__.setdefault('_packed_bits', unit.bits)
    return unit


def _pack_merge(merge: Merge) -> PackedMerge:
    scales = None if isinstance(merge, MeanMerge) else merge.weights(torch.empty(0))
    return PackedMerge(merge.num_bases, scales, isinstance(merge, InPlaceMerge))


def _pack_shortcut(shortcut: nn.Sequential) -> nn.Module:
    """The twin of a (pooling,) conv and norm that all branches share; it takes the branches folded, as they are."""
    *pooling, conv, norm = (layer for layer in shortcut if not isinstance(layer, nn.Identity))
    if isinstance(conv, BinaryConv2d):
        twin = pack_unit(conv, norm, is_shared=True)
    else:
        folded = _fold_norm(norm)
        weight = conv.weight.flatten(1) * folded['norm_scale'].unsqueeze(1)
        twin = FloatShortcut(weight, folded['norm_shift'], conv.stride)
    return nn.Sequential(*pooling, twin) if pooling else twin


def _pack_block(block: GroupNetBlock) -> PackedBlock:
    num_bases = block.merge.num_bases
    gate = None
    connection = block.connection
    if isinstance(connection, SoftGate):
        kind = Connection.GATED
        gate = connection.theta.detach().sigmoid().expand(num_bases).clone()
    else:
        kind = {
            SeparateConnection: Connection.SEPARATE,
            BroadcastConnection: Connection.BROADCAST,
            MergedConnection: Connection.MERGED,
        }[type(connection)]
    units = [pack_unit(*unit) for unit in block.chain().units]
    shortcut = None if block.shortcut is None else _pack_shortcut(block.shortcut)
    return PackedBlock(
        merge=_pack_merge(block.merge), connection=kind, num_bases=num_bases, units=units, gate=gate, shortcut=shortcut
    )


def _pack_tower(tower: 'BinaryTower') -> PackedTower:
    num_bases = tower.merge.num_bases
    levels = []
    for level in range(len(tower.input_norms)):
        units = [pack_unit(*unit) for unit in tower.chain(level).units]
        levels.append(PackedChain(Connection.BROADCAST, num_bases, units))
    return PackedTower(tower.input_norms, levels, _pack_merge(tower.merge))


def _pack_apart(conv: BinaryConv2d) -> tuple[nn.Module | None, PackedUnit]:
    """A conv, and the norm in front of its sign where that cannot be folded into it: it stays what it is."""
    norm = conv.input_norm
    if norm is None or (isinstance(norm, _BatchNorm) and norm.running_mean is not None):
        return None, pack_unit(conv)
    conv.input_norm = None
    try:
        return norm, pack_unit(conv)
    finally:
        conv.input_norm = norm


def _pack_conv(conv: BinaryConv2d) -> nn.Module:
    norm, unit = _pack_apart(conv)
    return unit if norm is None else nn.Sequential(norm, unit)


def _pack_linear(linear: BinaryLinear) -> PackedLinear:
    return PackedLinear(*_pack_apart(linear))


def _pack_conv_module(module: ConvModule) -> PackedUnit:
    if not isinstance(module.conv, BinaryConv2d):
        raise NotPackable('its conv is not binary')
    if type(module).forward is not ConvModule.forward:
        raise NotPackable(f'{type(module).__name__} computes something of its own')
    if module.order != ('conv', 'norm', 'act') or module.with_spectral_norm or module.with_explicit_padding:
        raise NotPackable(f'order={module.order}')
    if module.with_activation and (module.with_norm or not isinstance(module.activate, nn.ReLU)):
        raise NotPackable('an activation follows its norm')
    return pack_unit(module.conv, module.norm if module.with_norm else None, relu=module.with_activation)


def _pack_skip(skip: RealValuedSkip) -> PackedUnit:
    if not isinstance(skip.module, ConvModule):
        raise NotPackable(f'it goes around a {type(skip.module).__name__}')
    unit = _pack_conv_module(skip.module)
    unit.geometry = replace(unit.geometry, residual=Residual.INPUT)
    unit.numbers = unit.geometry.encode()
    return unit


_TWINS = (
    (GroupNetBlock, _pack_block),
    (BinaryTower, _pack_tower),
    (RealValuedSkip, _pack_skip),
    (ConvModule, _pack_conv_module),
    (BinaryLinear, _pack_linear),
    (BinaryConv2d, _pack_conv),
    (Merge, _pack_merge),
)
