"""Runs layers on bits if no gradient is needed: in evaluation mode, under ``no_grad``, on a CPU with kernels.

A layer packs itself once and keeps its packed twin until one of its tensors changes. The twin is not part of the layer:
its state dict, copies and pickles do not contain it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmgroupnet.layers.lean.path import has_global_hooks, is_hooked, is_traced
from mmgroupnet.layers.packed.fold import NotPackable
from mmgroupnet.layers.packed.modules import PackedUnit
from mmgroupnet.ops import kernels, pack_weight

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # a packed layer casts half precision, which autocast produces
_SAMPLES = 16  # per tensor


_is_simulated: ContextVar[bool] = ContextVar('is_simulated', default=False)


@contextmanager
def simulated() -> Iterator[None]:
    """A context in which layers run simulated, as in training, for comparisons with packed execution."""
    token = _is_simulated.set(True)
    try:
        yield
    finally:
        _is_simulated.reset(token)


class Packing:
    """The state that twins share if they are built together.

    Attributes:
        units: The packed units, each with a weak reference to the conv that it replaces.
    """

    def __init__(self) -> None:
        self.units: list[tuple[ReferenceType[nn.Module], PackedUnit]] = []
        self._bits: dict[nn.Module, Tensor] = {}

    def bits(self, conv: nn.Module, signs: Tensor) -> Tensor:
        """Packed weights of a conv. They are stored once even if the conv is used in several places, such as a conv of
        all pyramid levels with separate norms."""
        if conv not in self._bits:
            self._bits[conv] = pack_weight(signs)
        return self._bits[conv]


class Packable(nn.Module, ABC):
    """A layer that has a packed twin."""

    @abstractmethod
    def packed_twin(self, packing: Packing) -> nn.Module:
        """Builds the twin, in float32; it may contain full-precision parts of this layer, which are not copied.

        Args:
            packing: The state that the twin shares with others.

        Raises:
            NotPackable: If the twin would not compute the same.
        """

    def train(self, mode: bool = True) -> 'Packable':
        """Sets training or evaluation mode. In both cases the twin is rebuilt when it is needed next, since not every
        change of a tensor can be detected (writes to ``tensor.data`` count no versions)."""
        _KEPT.pop(self, None)
        return super().train(mode)


class _Kept:
    """The twin of a layer, and the tensors that it was built from.

    Args:
        layer: The layer.
        tensors: Its parameters and buffers, on the CPU; floats are float32.

    Attributes:
        twin: The twin; None if the layer is not packable.
        units: As :attr:`Packing.units`.
    """

    def __init__(self, layer: Packable, tensors: Sequence[Tensor]) -> None:
        packing = Packing()
        # Tensors in inference mode count no versions, and the twin outlives that mode.
        with torch.inference_mode(False), torch.no_grad():
            self._state = _state(tensors)
            self._samples = [_sample(tensor) for tensor in tensors if tensor.dtype == torch.float32 and tensor.numel()]
            self._values = self._read_samples()
            try:
                self.twin: nn.Module | None = layer.packed_twin(packing).eval()
            except NotPackable:
                self.twin = None
        self.units = packing.units

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are unchanged. Assignments through ``tensor.data`` are detected if they change one of a
        few samples of a tensor, as a moving average does."""
        return _state(tensors) == self._state and torch.equal(self._read_samples(), self._values)

    def _read_samples(self) -> Tensor:
        # Compared as integers, because there NaN equals itself.
        return torch.cat(self._samples).view(torch.int32) if self._samples else torch.empty(0)


_KEPT: WeakKeyDictionary[Packable, _Kept] = WeakKeyDictionary()


def _state(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _sample(tensor: Tensor) -> Tensor:
    """A view of some values of a tensor, evenly spaced in memory."""
    in_storage = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    values = min(tensor.numel(), in_storage)
    step = max(1, values // _SAMPLES)
    return tensor.detach().as_strided((-(-values // step),), (step,))


def _collect(module: nn.Module, tensors: list[Tensor], is_bypassed: bool) -> bool:
    """Appends the parameters and buffers of a module. Returns False if it has to be simulated: a part of it is in
    training mode, not on the CPU, not float32, or has hooks, which a twin would not call."""
    if module.training or (is_bypassed and is_hooked(module)):
        return False
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is None:
            continue
        if tensor.device.type != 'cpu' or (tensor.dtype != torch.float32 and tensor.is_floating_point()):
            return False
        tensors.append(tensor)
    return all(child is None or _collect(child, tensors, True) for child in module._modules.values())


def _may_run_on_bits(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_traced() or has_global_hooks():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != 'cpu' or x.dtype not in _DTYPES:
        return False
    return not _is_simulated.get() and kernels.library() is not None


def find_twin(layer: Packable, x: Tensor) -> nn.Module | None:
    """The packed twin that runs instead of a layer.

    Args:
        layer: The layer.
        x: Its input.

    Returns:
        The twin; None if the layer has to run itself: in training, if gradients are recorded, if its submodules have
        hooks, on other devices and dtypes, without kernels, and if it is not packable.
    """
    tensors: list[Tensor] = []
    if layer.training or not _may_run_on_bits(x) or not _collect(layer, tensors, is_bypassed=False):
        return None
    kept = _KEPT.get(layer)
    if kept is None or not kept.is_of(tensors):
        kept = _KEPT[layer] = _Kept(layer, tensors)
    for conv, unit in kept.units:
        observed: Any = conv()  # alive, because the requested layer contains it
        unit.sign_observer = observed.sign_observer
    return kept.twin
