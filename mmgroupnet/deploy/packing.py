"""Replaces the binary layers of a trained model by their packed twins."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d, RealValuedSkip, guard_foreign_code, is_as_written, is_guard
from mmgroupnet.layers.packed import NotPackable, Packable, PackedUnit, Packing, pack_unit
from mmgroupnet.ops import Residual


@dataclass(frozen=True)
class PackedLayer:
    """Result of packing one binary conv.

    Args:
        name: Its name in the model.
        problem: Why it was not packed; None if it was.
        bytes_before: Bytes of its latent weights.
        bytes_after: Bytes of its weights now.
    """

    name: str
    problem: str | None
    bytes_before: int
    bytes_after: int


def pack(model: nn.Module) -> nn.Module:
    """Packs a model. The result is a copy on the CPU, in float32 and evaluation mode, whose binary layers are packed
    twins; the other layers remain in torch, in channels_last.

    Args:
        model: A trained model with binary layers of mmgroupnet. It is not changed.

    Returns:
        The copy.

    Raises:
        UserError: If the model has no binary layers.
    """
    return pack_and_report(model)[0]


@torch.no_grad()
def pack_and_report(model: nn.Module) -> tuple[nn.Module, list[PackedLayer]]:
    """Like :func:`pack`, but also returns one :class:`PackedLayer` per binary conv.

    Args:
        model: A trained model with binary layers of mmgroupnet. It is not changed.

    Returns:
        The copy, and the layers in the order of the model.

    Raises:
        UserError: If the model has no binary layers.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}
    if not convs:
        raise UserError(f'model={type(model).__name__}: it has no binary layers of mmgroupnet to pack')
    packing = _ModelPacking()
    copied = copy.deepcopy(model).cpu().float()
    copied.eval()  # Not every model returns itself here.
    packed = packing.twin(copied, '')
    packed.eval()
    layers = []
    for name, conv in convs.items():
        before = conv.weight.numel() * conv.weight.element_size()
        problem = packing.problems.get(name)
        after = before if problem else len(conv.weight) * -(-conv.weight[0].numel() // 8)
        layers.append(PackedLayer(name, problem, before, after))
    # Packed layers read and write channels_last, so float layers between them need not convert their maps.
    packed = packed.to(memory_format=torch.channels_last)
    guard_foreign_code(packed)
    return packed, layers


class _ModelPacking(Packing):
    """The packing of one model.

    Attributes:
        problems: The reason for each binary conv that was not packed, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, str] = {}
        self._twins: dict[nn.Module, nn.Module] = {}

    def twin(self, module: nn.Module, name: str) -> nn.Module:
        """The packed twin of a module, or the module itself with its children packed. A module with several names
        remains one module."""
        if module not in self._twins:
            self._twins[module] = self._pack(module, name)
        return self._twins[module]

    def _pack(self, module: nn.Module, name: str) -> nn.Module:
        for kind, make in _TWINS:
            if not isinstance(module, kind):
                continue
            try:
                _refuse_hooks(module)
                return make(module, self)
            except NotPackable as error:
                if isinstance(module, BinaryConv2d):
                    self.problems[name] = str(error)
                    return module
                break  # Perhaps its submodules can be packed one by one.
        for child_name, child in module._modules.items():  # named_children() leaves out second names
            if child is not None:
                module._modules[child_name] = self.twin(child, f'{name}.{child_name}' if name else child_name)
        return module


def _refuse_hooks(module: nn.Module) -> None:
    """Refuses a module whose twin would lose hooks."""
    for part in module.modules():
        if not all(map(is_guard, (*part._forward_hooks.values(), *part._forward_pre_hooks.values()))):
            raise NotPackable(f'{type(part).__name__} has hooks, which its packed twin would not call')


def _pack_conv_module(module: ConvModule, packing: Packing, residual: Residual = Residual.NONE) -> PackedUnit:
    if not isinstance(module.conv, BinaryConv2d):
        raise NotPackable('its conv is not binary')
    if not is_as_written(module, ConvModule):
        raise NotPackable(f'{type(module).__name__} computes something of its own')
    if module.order != ('conv', 'norm', 'act') or module.with_spectral_norm or module.with_explicit_padding:
        raise NotPackable(f'order={module.order}')
    if module.with_activation and (module.with_norm or not is_as_written(module.activate, nn.ReLU)):
        raise NotPackable('an activation follows its norm')
    norm = module.norm if module.with_norm else None
    return pack_unit(packing, module.conv, norm, module.with_activation, residual)


def _pack_skip(skip: RealValuedSkip, packing: Packing) -> PackedUnit:
    if is_as_written(skip, RealValuedSkip):
        if isinstance(skip.module, ConvModule):
            return _pack_conv_module(skip.module, packing, Residual.INPUT)
        if isinstance(skip.module, BinaryConv2d):
            return pack_unit(packing, skip.module, residual=Residual.INPUT)
    raise NotPackable(f'it goes around a {type(skip.module).__name__}')


# mmcv's module and the skip around it get twins only here, when a whole model is packed.
_TWINS: tuple[tuple[type[nn.Module], Callable[[Any, Packing], nn.Module]], ...] = (
    (RealValuedSkip, _pack_skip),
    (ConvModule, _pack_conv_module),
    (Packable, lambda layer, packing: layer.packed_twin(packing)),
)
