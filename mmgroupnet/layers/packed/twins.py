"""Builds packed units from binary convs and the layers around them: norms and scales are folded into a few numbers per
channel."""

from weakref import ref

import torch
from torch import Tensor, nn

from mmgroupnet.layers.lean.float_shortcut import is_float_shortcut
from mmgroupnet.layers.lean.interface import BinaryConv
from mmgroupnet.layers.packed.fold import NotPackable, can_fold, fold_norm
from mmgroupnet.layers.packed.modules import PackedFloatShortcut, PackedUnit
from mmgroupnet.layers.packed.path import Packing
from mmgroupnet.ops import Residual
from mmgroupnet.quantizers import SignActivation, is_standard_sign, is_standard_weight


def _sign_parameters(conv: BinaryConv, input_norm: nn.Module | None) -> dict[str, Tensor]:
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


def _signs_and_magnitude(conv: BinaryConv) -> tuple[Tensor, Tensor]:
    """Weights with one magnitude per output channel (from any quantizer), or a tensor with their signs, and that
    magnitude."""
    if is_standard_weight(conv.weight_quantizer):
        latent, scale = conv.weight_quantizer.binarise(conv.weight, conv.num_bases)
        return latent.detach(), scale.detach()
    weight = conv.weight_quantizer(conv.weight, conv.num_bases).detach()
    magnitude = weight.flatten(1).abs()
    scale = magnitude.amax(1)
    # Straight-through estimators are often written as sign + w - w.detach(), which is rounded.
    if not torch.allclose(magnitude, scale.view(-1, 1), rtol=1e-5, atol=0):
        problem = 'gives weights of more than one magnitude per output channel'
        if torch.equal(weight, conv.weight):
            problem = 'has no signs: its weights are real-valued'
        raise NotPackable(f'{type(conv.weight_quantizer).__name__} {problem}')
    return weight, scale


def pack_unit(
    packing: Packing,
    conv: nn.Module,
    norm: nn.Module | None = None,
    relu: bool = False,
    residual: Residual = Residual.NONE,
    shared_by: int | None = None,
    folds_input_norm: bool = True,
) -> PackedUnit:
    """Packs a conv and the operations behind it.

    Args:
        packing: The state that the unit shares with others.
        conv: The conv.
        norm, relu, residual: The operations behind it. Default: none.
        shared_by: Number of branches that share the conv. Default: None, each has its own weights.
        folds_input_norm: Whether the norm in front of the sign is part of the unit. Default: True.

    Raises:
        NotPackable: If the conv is not binary, or a part of it overrides its computation.
    """
    if not isinstance(conv, BinaryConv):
        raise NotPackable(f'{type(conv).__name__} is no binary conv')
    if not conv.is_as_written:
        raise NotPackable(f'{type(conv).__name__} has a forward of its own')
    weight, scale = _signs_and_magnitude(conv)
    if conv.merges:
        scale = scale * conv.merge.weights(scale).repeat_interleave(conv.out_channels)
    bias = None if conv.bias is None else conv.bias.detach()
    input_norm = conv.input_norm if folds_input_norm else None
    parameters = dict(bits=packing.bits(conv, weight), scale=scale, bias=bias, **_sign_parameters(conv, input_norm))
    if norm is not None:
        folded = fold_norm(norm)
        parameters.update(folded)
        if conv.bias is None and not conv.merges:
            # norm(relu(scale * x)) = (norm_scale * scale) * relu(x) + norm_shift, because no magnitude is negative.
            parameters['norm_scale'] = folded['norm_scale'] * scale
            del parameters['scale']
    geometry = conv.geometry(shared_by is not None, relu, residual)
    unit = PackedUnit(geometry, parameters, shared_by or 1)
    packing.units.append((ref(conv), unit))
    return unit


def pack_apart(packing: Packing, conv: BinaryConv) -> tuple[nn.Module | None, PackedUnit]:
    """The norm in front of a conv's sign, unchanged, if it cannot be folded, and the packed conv."""
    norm = conv.input_norm
    if norm is None or can_fold(norm):
        return None, pack_unit(packing, conv)
    return norm, pack_unit(packing, conv, folds_input_norm=False)


def pack_shortcut(packing: Packing, shortcut: nn.Sequential, num_bases: int) -> nn.Module:
    """The twin of a (pooling,) conv and norm that K branches share; it takes the folded branches."""
    *pooling, conv, norm = (layer for layer in shortcut if not isinstance(layer, nn.Identity))
    if isinstance(conv, BinaryConv):
        twin: nn.Module = pack_unit(packing, conv, norm, shared_by=num_bases)
    elif not is_float_shortcut(nn.Sequential(*pooling, conv)):
        raise NotPackable(f'its shortcut has a {type(conv).__name__}')
    else:
        folded = fold_norm(norm)
        weight = conv.weight.flatten(1) * folded['norm_scale'].unsqueeze(1)
        twin = PackedFloatShortcut(weight, folded['norm_shift'], conv.stride)
    return nn.Sequential(*pooling, twin) if pooling else twin
