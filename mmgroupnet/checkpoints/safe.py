"""Reads the checkpoints that mmengine writes, in torch's safe mode only.

In that mode ``torch.load`` refuses every class that is not allow-listed, and mmengine stores a few beside the weights:
the history of the losses and the best score. Only these are allow-listed, and only while a file is read. A checkpoint
that carries code is refused. mmengine's own loaders would run that code: those of addresses do not ask for the safe
mode, and the maintained fork of mmengine gives it up where a file cannot be read in it.

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
