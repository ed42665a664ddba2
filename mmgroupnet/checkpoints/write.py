"""Writes checkpoints atomically, with content that torch's safe mode reads without an allow-list."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer

from mmgroupnet.errors import UserError

# The name that selects AtomicLocalBackend in the ``backend_args`` of a CheckpointHook.
ATOMIC_BACKEND = 'mmgroupnet.atomic'


def as_plain(value: object) -> object:
    """A copy of the entries beside the weights, with only types that torch's safe mode reads without an allow-list.

    Arrays and scalars of numpy become lists and numbers, configs become dicts, and a ``HistoryBuffer`` becomes a dict
    of its tensors, see :func:`as_history`.
    """
    if isinstance(value, HistoryBuffer):
        values, counts = (torch.from_numpy(array.copy()) for array in value.data)
        return dict(log_history=values, count_history=counts, max_length=value.max_length)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        # A copy of the same type: schedulers keep a Counter, which torch allows, as it does ordered dicts.
        plain = dict(value) if isinstance(value, ConfigDict) else copy.copy(value)
        for key, entry in value.items():
            plain[key] = as_plain(entry)
        return plain
    if isinstance(value, list | tuple):
        entries = [as_plain(entry) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)  # Named tuples are separate classes.
    return value


def as_history(value: object) -> object:
    """The ``HistoryBuffer`` that :func:`as_plain` turned into a dict; other values are returned unchanged."""
    if not isinstance(value, Mapping) or set(value) != {'log_history', 'count_history', 'max_length'}:
        return value
    # mmengine resumes with all tensors of the file on the run's device.
    values, counts = (value[name].cpu().numpy() for name in ('log_history', 'count_history'))
    return HistoryBuffer(values, counts, value['max_length'])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file; what is written under it takes the place of the file, unless an error occurs."""
    partial = path.with_name(f'{path.name}.partial')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # It is there only after an error.
            partial.unlink()


def write_checkpoint(content: Mapping, path: str | Path) -> None:
    """Writes a checkpoint; a killed process leaves the old file or the new one, never half of one.

    Args:
        content: Content of the file.
        path: The file; its folder is created.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With a file object: given a name, torch would write the name into the file.
        with replacing(path) as partial, open(partial, 'wb') as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # A full disk ends torch's writer with a RuntimeError.
        raise UserError(f'{path} cannot be written: {getattr(error, "strerror", None) or error}') from error


@register_backend(ATOMIC_BACKEND)
class AtomicLocalBackend(LocalBackend):
    """Writes a file under another name first: a killed run leaves the old file or the new one, never half of one."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with replacing(Path(filepath)) as partial:
            super().put(obj, partial)
