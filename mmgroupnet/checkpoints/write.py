"""Checkpoints written whole or not at all."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend, register_backend

from mmgroupnet.errors import UserError

# The name by which a CheckpointHook's ``backend_args`` ask for AtomicLocalBackend.
ATOMIC_BACKEND = 'mmgroupnet.atomic'


def write_checkpoint(content: Mapping, path: str | Path) -> None:
    """Writes a checkpoint; a killed process leaves the old file or the new one, never half of one.

    Args:
        content: What the file is to hold.
        path: The file; its folder is made.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f'{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # By the file object, not by its name, which torch would write into the file.
        with open(partial, 'wb') as file:
            torch.save(content, file)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # No folder, or nothing written yet.
            partial.unlink()
        raise UserError(f'{path} cannot be written: {error.strerror}') from error


@register_backend(ATOMIC_BACKEND)
class AtomicLocalBackend(LocalBackend):
    """Writes a file under another name first: a killed run leaves the old file or the new one, never half of one."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        partial = f'{filepath}.partial'
        super().put(obj, partial)
        os.replace(partial, filepath)
