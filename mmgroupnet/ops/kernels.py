"""Loads the compiled kernels (csrc/) and calls them; no other file knows their C interface."""

import ctypes
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmgroupnet.ops.geometry import PARAMETERS, SAME_PADDING, Pair, Rates, UnitGeometry

ABI_VERSION = 5
# Chooses the instruction set, one of `available_kernels()`. Default: the best that the processor has.
ENVIRONMENT_VARIABLE = 'MMGROUPNET_KERNEL'


# Fields of ``mmg_unit`` that are not single numbers.
_C_TYPES: dict[Any, Any] = {Pair: c_int32 * 2, Pair | None: c_int32 * 2, Rates: POINTER(c_int32)}


class Unit(Structure):
    """``mmg_unit`` of csrc/mmgroupnet.h: a geometry, and addresses of the parameters."""

    arranged: Tensor | None = None  # keeps the memory of `weights`

    _fields_ = [
        *((field.name, _C_TYPES.get(field.type, c_int32)) for field in fields(UnitGeometry)),
        *((name, c_void_p) for name in ('weights', *PARAMETERS[1:])),
    ]

    @classmethod
    def of(cls, geometry: UnitGeometry) -> 'Unit':
        """The struct without addresses."""
        numbers = {field.name: getattr(geometry, field.name) for field in fields(geometry)}
        numbers['padding'] = geometry.padding or SAME_PADDING
        numbers['dilations'] = (c_int32 * geometry.num_bases)(*geometry.dilations)
        return cls(**numbers)


class Window(Structure):
    """``mmg_window`` of csrc/mmgroupnet.h."""

    _fields_ = [(name, c_int32) for name in 'height width stride_height stride_width pad_height pad_width'.split()]


class BatchNorm(Structure):
    """``mmg_batch_norm`` of csrc/mmgroupnet.h."""

    _fields_ = [
        *((name, c_int32) for name in 'channels branches uses_batch'.split()),
        *((name, c_double) for name in 'eps momentum'.split()),
        *((name, c_void_p) for name in 'scale weight bias running_mean running_var'.split()),
    ]


class Block(Structure):
    """``mmg_block`` of csrc/mmgroupnet.h."""

    _fields_ = [
        *((name, c_int32) for name in 'batch height width num_bases connection'.split()),
        *((name, c_void_p) for name in 'merge_scales gate shortcut_map'.split()),
        ('shortcut', POINTER(Unit)),
        ('units', POINTER(Unit)),
        ('num_units', c_int32),
    ]


# Values of a status, as in csrc/mmgroupnet.h.
_OK, _OUT_OF_MEMORY = 0, 1
# Functions that return a text.
_TEXTS = ('mmg_available_kernels', 'mmg_selected_kernels', 'mmg_failure')
# Functions that return a status: their arguments.
_SIGNATURES = {
    'mmg_select_kernels': [c_char_p],
    'mmg_arranged_bytes': [POINTER(Unit), POINTER(c_size_t)],
    'mmg_arrange_weights': [POINTER(Unit), c_void_p, c_void_p],
    'mmg_sign_pack': [c_void_p, c_int32, c_int32, c_int64, c_int32, c_int32, c_void_p, c_int32],
    'mmg_convolve': [POINTER(Unit), c_int32, c_int32, c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32],
    'mmg_run_block': [POINTER(Block), c_void_p, c_void_p, c_int32],
    'mmg_connect': [c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p, c_void_p, c_int32],
    'mmg_max_pool': [c_void_p, *[c_int32] * 4, POINTER(Window), *[c_void_p] * 3, c_int32],
    'mmg_padding_sums': [c_void_p, *[c_int32] * 6, POINTER(Window), c_int32, c_void_p],
    'mmg_pack_weights': [c_void_p, c_int64, c_int32, c_int32, c_void_p, c_int32],
    'mmg_relu_sums': [c_void_p, c_int32, c_int64, c_int32, c_void_p, c_int32],
    'mmg_relu_affine': [c_void_p, c_int32, *[c_void_p] * 3, c_int64, c_int32, c_void_p, c_int32],
    'mmg_gradient_sums': [c_void_p, c_void_p, c_int32, c_int64, c_int32, c_void_p, c_int32],
    'mmg_norm_statistics': [c_void_p, c_int32, c_int64, POINTER(BatchNorm), *[c_void_p] * 3, c_int32],
    'mmg_norm_gradients': [c_void_p, c_void_p, c_int32, c_int64, POINTER(BatchNorm), *[c_void_p] * 5, c_int32],
    'mmg_affine_gradient': [c_void_p, c_void_p, c_int32, *[c_void_p] * 3, c_int64, *[c_int32] * 3, c_void_p, c_int32],
    'mmg_branch_signs': [c_void_p, c_int64, c_int32, c_int32, c_int32, c_void_p, c_int32],
    'mmg_sign_gradient': [*[c_void_p] * 3, c_int64, c_int32, c_int32, c_int32, c_void_p, c_int32],
    'mmg_connect_gradient': [*[c_void_p] * 4, c_int64, *[c_int32] * 2, *[c_void_p] * 2, c_int32],
    'mmg_ceiling': [c_double, POINTER(c_double)],
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels with the instruction set that :data:`ENVIRONMENT_VARIABLE` names. If they were not compiled or cannot
    be loaded, None and one warning.

    Raises:
        RuntimeError: If the variable names kernels that are not available, or the file is of another version.
    """
    found = sorted(Path(__file__).parent.glob('_kernels*.so'))
    if not found:
        print_log(
            'The packed kernels were not compiled (no C++ compiler when mmgroupnet was installed?): binary networks '
            'run simulated, no faster than float, and train more slowly. With a compiler: python setup.py build_ext '
            '--inplace',
            logger='current',
            level=logging.WARNING,
        )
        return None
    try:
        loaded = ctypes.CDLL(str(found[0]))
    except OSError as error:
        print_log(
            f'The packed kernels cannot be loaded ({error}): binary networks run simulated, no faster than float, and '
            'train more slowly. If libgomp is missing: apt-get install libgomp1',
            logger='current',
            level=logging.WARNING,
        )
        return None
    # Checked first, because another version may lack the functions that are looked up below.
    if loaded.mmg_abi_version() != ABI_VERSION:
        raise RuntimeError(
            f'{found[0]} is of version {loaded.mmg_abi_version()}, this code of {ABI_VERSION}: compile it again, '
            'python setup.py build_ext --inplace'
        )
    for name in _TEXTS:
        getattr(loaded, name).restype = c_char_p
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.errcheck = lambda status, function, _: _raise_failure(status, function.__name__, loaded.mmg_failure)
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, '')
    names = loaded.mmg_available_kernels().decode().split()
    if wanted and wanted not in names:
        raise RuntimeError(f'{ENVIRONMENT_VARIABLE}={wanted}: this machine has the kernels {", ".join(names)}')
    loaded.mmg_select_kernels(wanted.encode())
    return loaded


def loaded() -> ctypes.CDLL:
    """The kernels, for code that needs them.

    Raises:
        RuntimeError: If they were not compiled.
    """
    found = library()
    if found is None:
        raise RuntimeError('the packed kernels were not compiled: python setup.py build_ext --inplace')
    return found


def _raise_failure(status: int, name: str, describe: Callable[[], bytes]) -> None:
    """Raises the error of a status. ctypes calls this after each function of the library."""
    if status != _OK:
        error = MemoryError if status == _OUT_OF_MEMORY else RuntimeError
        raise error(f'{name}: {describe().decode()}')


def available_kernels() -> list[str]:
    """Names of the instruction sets that can be chosen here; empty if the kernels were not compiled."""
    return loaded().mmg_available_kernels().decode().split() if library() else []


@cache
def selected_kernels() -> str:
    """Name of the instruction set in use; ``simulated`` if the kernels were not compiled."""
    return loaded().mmg_selected_kernels().decode() if library() else 'simulated'


def select_kernels(name: str) -> None:
    """Chooses the instruction set, to compare several in one process.

    Raises:
        ValueError: If it is not available.
    """
    if name not in available_kernels():
        raise ValueError(f'name={name!r}: this machine has the kernels {", ".join(available_kernels()) or "none"}')
    loaded().mmg_select_kernels(name.encode())
    selected_kernels.cache_clear()


def ceiling(seconds: float) -> float:
    """Binary MACs per second of the ceiling loop on this thread, see csrc/mmgroupnet.h."""
    found = c_double()
    loaded().mmg_ceiling(seconds, found)
    return found.value


def nhwc(x: Tensor) -> Tensor:
    """A map in channels_last, as kernels read it; the map itself if it already is."""
    return x.contiguous(memory_format=torch.channels_last)


def count_pixels(x: Tensor) -> int:
    """Pixels of all images, ``N * H * W``."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's data."""
    return None if tensor is None else tensor.data_ptr()


def check_parameters(geometry: UnitGeometry, parameters: Sequence[Tensor | None]) -> None:
    """Checks the tensors of a unit, because the kernels see only their addresses.

    Raises:
        ValueError: If one is missing, not contiguous, or has another size or dtype than the geometry requires.
    """
    g = geometry
    outputs = g.out_channels if g.merges else g.weight_rows
    inputs = g.in_channels * (1 if g.merges or g.shares_weights else g.num_bases)
    shapes = dict(
        bits=(g.weight_rows, -(-g.row_bits // 8)),
        scale=(g.weight_rows,),
        bias=(outputs,),
        norm_scale=(outputs,),
        norm_shift=(outputs,),
        sign_scale=(inputs,),
        sign_shift=(inputs,),
    )
    given = dict(zip(PARAMETERS, parameters, strict=True))
    for name, shape in shapes.items():
        dtype = torch.uint8 if name == 'bits' else torch.float32
        check_tensor(name, given[name], shape, dtype)
    if given['bits'] is None:
        raise ValueError('bits=None: a unit needs weights, give them packed')
    if (given['norm_scale'] is None) != (given['norm_shift'] is None):
        raise ValueError('norm_scale and norm_shift: give both or neither')


def check_tensor(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Checks an optional tensor that kernels will read.

    Raises:
        ValueError: If it is of another shape or dtype, or not contiguous.
    """
    if tensor is None:
        return
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f'{name} is {tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}: '
            f'give {shape}, {dtype}, contiguous'
        )


# Arranged weights, by the id of the bits that they were made from.
_ARRANGED: dict[int, '_Arranged'] = {}


class _Arranged:
    """Weights in the order that the kernels need, with the structs that point to them.

    Args:
        bits: The stored weights. When they are freed, this entry leaves :data:`_ARRANGED`.
        state: Kernels, version of the bits and geometry, for which the weights were arranged.
        weights: The arranged weights.
    """

    def __init__(self, bits: Tensor, state: tuple, weights: Tensor) -> None:
        key = id(bits)
        self.bits = weakref.ref(bits, lambda _: _ARRANGED.pop(key, None))
        self.state = state
        self.weights = weights
        self.units: dict[tuple, Unit] = {}  # by addresses and shapes of the other parameters


def describe_unit(geometry: UnitGeometry, parameters: Sequence[Tensor | None]) -> Unit:
    """The struct of a unit, with its weights in the order that the kernels in use need.

    Both are cached until the weights change or are freed: filling them in takes as long as a small convolution. Pyramid
    levels share weights but not norms, so each has its own struct.

    Args:
        geometry: Its shape parameters.
        parameters: The tensors of :data:`PARAMETERS`, contiguous; all but ``bits`` are float32 or None. They must
            outlive the struct.

    Raises:
        ValueError: If a tensor does not fit the geometry, or a sum of the unit does not fit its integer type.
    """
    bits, *rest = parameters
    if bits is None:
        raise ValueError('bits=None: a unit needs weights, give them packed')
    # Torch does not count changes of tensors in inference mode.
    version = bits.numpy().tobytes() if bits.is_inference() else bits._version
    state = (selected_kernels(), bits.data_ptr(), version, geometry)
    # A tensor that is freed may leave its address to one of another shape, which has to be checked anew.
    key = tuple(None if each is None else (each.data_ptr(), each.dtype, each.shape, each.stride()) for each in rest)
    kept = _ARRANGED.get(id(bits))
    if kept is not None and (kept.bits() is not bits or kept.state != state):
        kept = None
    if kept is not None and key in kept.units:
        return kept.units[key]
    check_parameters(geometry, parameters)
    unit = Unit.of(geometry)
    for name, tensor in zip(PARAMETERS[1:], rest, strict=True):
        setattr(unit, name, pointer(tensor))
    if kept is None:
        kept = _ARRANGED[id(bits)] = _Arranged(bits, state, _arrange_weights(geometry, unit, bits))
    # The struct keeps its tensors alive: another thread may replace the cache entry while this one still uses it.
    unit.arranged = kept.weights
    unit.weights = kept.weights.data_ptr()
    kept.units[key] = unit
    return unit


def _arrange_weights(geometry: UnitGeometry, unit: Unit, bits: Tensor) -> Tensor:
    bytes_needed = c_size_t()
    loaded().mmg_arranged_bytes(unit, bytes_needed)
    size = bytes_needed.value
    if size == 0:
        raise ValueError(
            f'in_channels={geometry.in_channels}: {geometry.row_bits} products in one sum, give fewer than 2**24'
        )
    # The kernels load whole cache lines.
    storage = torch.empty(size + 63, dtype=torch.uint8)
    arranged = storage[-storage.data_ptr() % 64 :][:size]
    loaded().mmg_arrange_weights(unit, bits.data_ptr(), arranged.data_ptr())
    return arranged
