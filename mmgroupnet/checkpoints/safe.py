"""Lets torch's safe mode read the checkpoints that mmengine writes.

Since torch 2.6 ``torch.load`` refuses every class that is not allow-listed, and mmengine stores a few beside the
weights: the history of the
losses and the best score. They are listed here, and nothing else: a checkpoint that carries code is still refused.
"""

import pickle

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# The statistics that a HistoryBuffer refers to in its pickle.
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: type, name: str):
    """Stands in for ``getattr``, by which a pickle refers to a method: gives the statistics of a ``HistoryBuffer`` and
    nothing else."""
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr of {owner!r} and {name!r}')
    return getattr(HistoryBuffer, name)


def allow_mmengine_globals() -> None:
    """Adds to torch's allow-list what mmengine's checkpoints hold: ``HistoryBuffer`` and numpy's arrays and scalars of
    plain numbers.

    The list is global to the process; calling this twice does no harm.
    """
    # numpy 2 moved this module; a checkpoint names it as it was called where the checkpoint was written.
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, (_history_method, 'builtins.getattr')]
    for package in ('numpy.core', 'numpy._core'):
        allowed += [
            (multiarray._reconstruct, f'{package}.multiarray._reconstruct'),
            (multiarray.scalar, f'{package}.multiarray.scalar'),
        ]
    allowed += {type(np.dtype(kind)) for kind in ('?', 'i1', 'u1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8')}
    torch.serialization.add_safe_globals(allowed)
