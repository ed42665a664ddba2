"""Lets torch's safe mode read the checkpoints that mmengine writes.

Since torch 2.6 ``torch.load`` refuses every class that is not allow-listed, and mmengine stores a few beside the
weights: the history of the losses and the best score. Only these are allow-listed, and only while a file is read: a
checkpoint that carries code is still refused.

Adding the classes once, when a module is imported, is not enough. A process has one allow-list, and torch's context
``safe_globals`` removes its entries on leaving, even those that were on the list before.
"""

import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local

# The statistics that a HistoryBuffer refers to in its pickle.
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
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


@functools.cache
def _mmengine_globals() -> list:
    """The classes in mmengine's checkpoints: ``HistoryBuffer`` and numpy's arrays and scalars of plain numbers."""
    # numpy 2 moved this module; a checkpoint has the name from the numpy that wrote it.
    core: Any = np._core if hasattr(np, '_core') else np.core
    multiarray = core.multiarray
    found = [HistoryBuffer, np.ndarray, np.dtype, (_history_method, 'builtins.getattr')]
    for package in ('numpy.core', 'numpy._core'):
        found += [
            (multiarray._reconstruct, f'{package}.multiarray._reconstruct'),
            (multiarray.scalar, f'{package}.multiarray.scalar'),
        ]
    return [*found, *{type(np.dtype(kind)) for kind in ('?', 'i1', 'u1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8')}]


@contextmanager
def mmengine_globals() -> Iterator[None]:
    """A context in which torch's safe mode reads the checkpoints that mmengine writes.

    Afterwards the allow-list is as before: entries that were already on it stay.
    """
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([entry for entry in _mmengine_globals() if entry not in before]):
            yield


def _in_safe_mode(load: Callable[..., dict]) -> Callable[..., dict]:
    """One of mmengine's loaders, with :func:`mmengine_globals` around it."""

    @functools.wraps(load)  # mmengine logs its name
    def wrapper(*args, **kwargs) -> dict:
        with mmengine_globals():
            return load(*args, **kwargs)

    return wrapper


def register_loaders() -> None:
    """Lets mmengine read its own checkpoints, from files and by http, for ``load_from``, ``resume``, pretrained weights
    and inferencers. mmengine 0.10.7 itself cannot."""
    CheckpointLoader.register_scheme('', loader=_in_safe_mode(load_from_local), force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), loader=_in_safe_mode(load_from_http), force=True)
