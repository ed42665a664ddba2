"""Lets torch's safe mode read the checkpoints that mmengine writes.

Since torch 2.6 ``torch.load`` refuses every class that is not allow-listed, and mmengine stores a few beside the
weights: the history of the losses and the best score. They are allow-listed while a file is read, and nothing else: a
checkpoint that carries code is still refused.

An entry that is made once, when a module is imported, does not last. A process has one allow-list, and torch's context
``safe_globals`` removes its entries from it on leaving, even those that were on the list before.
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
# Threads share the allow-list: the first one to leave the context would remove the entries that others still need.
_LOCK = threading.RLock()


def _renew_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()


# If another thread holds the lock at a fork, the child gets a locked copy that no thread of it will release.
if hasattr(os, 'register_at_fork'):  # Not on Windows.
    os.register_at_fork(after_in_child=_renew_lock)


def _history_method(owner: type, name: str):
    """Stands in for ``getattr``, by which a pickle refers to a method: gives the statistics of a ``HistoryBuffer`` and
    nothing else."""
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {owner!r} and {name!r}')
    return getattr(HistoryBuffer, name)


@functools.cache
def _mmengine_globals() -> list:
    """What mmengine's checkpoints hold: ``HistoryBuffer`` and numpy's arrays and scalars of plain numbers."""
    # numpy 2 moved this module; a checkpoint names it as it was called where the checkpoint was written.
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
    """While it lasts, torch's safe mode reads the checkpoints that mmengine writes.

    It leaves the allow-list as it was: what had been on it before stays.
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
    """Lets mmengine read its own checkpoints, from the disk and by http: for ``load_from``, ``resume``, pretrained
    weights and inferencers alike. mmengine 0.10.7 itself does not."""
    CheckpointLoader.register_scheme('', loader=_in_safe_mode(load_from_local), force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), loader=_in_safe_mode(load_from_http), force=True)
