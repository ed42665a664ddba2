"""Reads the checkpoints that mmengine writes, in torch's safe mode only.

In that mode ``torch.load`` refuses every class that is not allow-listed, and mmengine stores a few beside the weights:
the history of the losses and the best score. Only these are allow-listed, and only while a file is read, with
stand-ins for numpy's classes that take nothing but numbers. A checkpoint that carries code is refused. mmengine's own
loaders would run that code: those of addresses do not ask for the safe mode, and the maintained fork of mmengine gives
it up where a file cannot be read in it.

Adding the classes once, when a module is imported, is not enough. A process has one allow-list, and torch's context
``safe_globals`` removes its entries on leaving, even those that were on the list before.
"""

import functools
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint

# The statistics that a HistoryBuffer refers to in its pickle.
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
# The dtypes of numbers, as pickles name them.
_NUMBERS = ('b1', 'i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f2', 'f4', 'f8')
# Threads share the allow-list: the first thread to leave the context would remove entries that others still need.
_LOCK = threading.RLock()


def _renew_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()


# If another thread holds the lock at a fork, the child gets a locked copy that none of its threads will release.
if hasattr(os, 'register_at_fork'):  # Not on Windows.
    os.register_at_fork(after_in_child=_renew_lock)


def _history_method(owner: type, name: str):
    """Replaces ``getattr``, by which a pickle refers to a method; it returns only the statistics of a
    ``HistoryBuffer``."""
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {owner!r} and {name!r}')
    return getattr(HistoryBuffer, name)


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle. A real one takes a state that turns numbers into addresses of objects."""

    def __init__(self, kind: str, align: bool = False, copy: bool = True) -> None:
        if kind not in _NUMBERS:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype of {kind!r}')
        self.real = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        _, order, *rest = state
        if rest != [None, None, None, -1, -1, 0]:  # fields, flags: nothing that a plain number has
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype with the state {state!r}')
        self.real = self.real.newbyteorder(order)


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray`` and for numpy's ``_reconstruct`` in a pickle. It takes plain numbers only, and is
    itself pickled as numpy's."""

    def __new__(cls, *arguments: object) -> '_Array':
        """An empty array, whatever the pickle asks for; its state has shape and content."""
        return np.empty(0, np.uint8).view(cls)

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError('Unsupported global: GLOBAL numpy.ndarray of something else than numbers')
        super().__setstate__((version, shape, dtype.real, is_fortran, content))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _scalar(dtype: _Dtype, content: bytes) -> np.generic:
    """Replaces numpy's ``scalar``."""
    return np.frombuffer(content, dtype.real)[0]


def _mmengine_globals() -> dict[str, Any]:
    """What stands for the classes and functions in mmengine's checkpoints, by the names that pickles have for them:
    ``HistoryBuffer``, and numpy's arrays and scalars of plain numbers."""
    found = {
        f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}': HistoryBuffer,
        'builtins.getattr': _history_method,
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _Array,
    }
    # numpy 2 moved this module; a checkpoint has the name from the numpy that wrote it.
    for package in ('numpy.core', 'numpy._core'):
        found[f'{package}.multiarray._reconstruct'] = _Array
        found[f'{package}.multiarray.scalar'] = _scalar
    return found


def _pickled_name(entry: Any) -> str:
    """The name under which an entry of torch's allow-list occurs in pickles."""
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


@contextmanager
def mmengine_globals() -> Iterator[None]:
    """A context in which torch's safe mode reads the checkpoints that mmengine writes.

    Afterwards the allow-list is as before: entries that were already on it stay.
    """
    serialization = torch.serialization
    with _LOCK:
        ours = _mmengine_globals()
        others = [entry for entry in serialization.get_safe_globals() if _pickled_name(entry) in ours]
        with serialization.safe_globals(others):
            pass  # Leaving this context takes them off the list, so that each name has one entry.
        try:
            with serialization.safe_globals([(value, name) for name, value in ours.items()]):
                yield
        finally:
            serialization.add_safe_globals(others)


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Loads a file in safe mode, in place of mmengine's function of this name."""
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    with mmengine_globals():
        return torch.load(filename, map_location=map_location, weights_only=True)


@functools.wraps(checkpoint.load_from_http)
def load_from_http(*args: Any, **kwargs: Any) -> dict:
    """Calls mmengine's function of this name while the classes that mmengine stores are allow-listed."""
    with mmengine_globals():
        return checkpoint.load_from_http(*args, **kwargs)


def register_loaders() -> None:
    """Makes mmengine read checkpoints in safe mode, its own ones included, for ``load_from``, ``resume``, pretrained
    weights and inferencers."""
    # mmengine logs the part of a loader's name behind ``load_from_``.
    CheckpointLoader.register_scheme('', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), loader=load_from_http, force=True)
    # The loaders of all addresses, and of names such as torchvision://resnet18, call it by this name.
    checkpoint.load_url = functools.partial(torch.hub.load_state_dict_from_url, weights_only=True)
