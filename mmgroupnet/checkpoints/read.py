"""Reads checkpoints in torch's safe mode, and finds the checkpoints of a run."""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from mmgroupnet.checkpoints.safe import mmengine_globals
from mmgroupnet.errors import UserError


def is_local(path: str) -> bool:
    """Whether this checkpoint is a local file for mmengine, without a scheme such as ``https://``."""
    return '://' not in path


def first_meta(dataset_meta: object) -> dict:
    """Classes and palette in the ``dataset_meta`` of a checkpoint or a visualizer; empty if it has none. mmdet's
    ``ConcatDataset`` makes it a list if its parts differ, for example in the palette."""
    found = dataset_meta[0] if isinstance(dataset_meta, list | tuple) and dataset_meta else dataset_meta
    return dict(found) if isinstance(found, Mapping) else {}


def read_checkpoint(path: str | Path, map_location: str = 'meta') -> dict:
    """Reads a local checkpoint in torch's safe mode.

    Args:
        path: The file.
        map_location: Device of its tensors. Default: 'meta', only shapes and dtypes, which is quick for files of any
            size.

    Returns:
        The checkpoint.

    Raises:
        UserError: If the file is missing, unreadable, truncated, not a checkpoint, or carries code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist')
    try:
        with mmengine_globals():
            mmap = map_location == 'meta' and zipfile.is_zipfile(path)
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except PermissionError as error:
        raise UserError(f'checkpoint {path} cannot be read: {error.strerror}') from error
    except Exception as error:  # Garbage makes the unpickler raise any type.
        refused = isinstance(error, pickle.UnpicklingError) and re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise UserError(
                f'checkpoint {path} carries code ({refused[1]}) and is refused: a checkpoint may hold tensors, '
                'numbers, strings and what mmengine logs'
            ) from error
        raise UserError(f'checkpoint {path} is truncated or no checkpoint of torch') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict with a state_dict')
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f'checkpoint {path} holds no weights by their names, but a {type(weights).__name__}')
    return checkpoint


def is_packed(checkpoint: Mapping) -> bool:
    """Whether the content of a file claims to be a packed checkpoint (docs/packed_checkpoint.md)."""
    meta = checkpoint.get('meta')
    return isinstance(meta, dict) and 'packed' in meta


def weights_of(checkpoint: Mapping) -> dict:
    """The weights in the content of a file, which is a dict with a ``state_dict`` or the state dict itself, without the
    leading ``module.`` that training in several processes adds."""
    given = checkpoint.get('state_dict', checkpoint)
    weights: Any = OrderedDict((key.removeprefix('module.'), value) for key, value in given.items())
    if hasattr(given, '_metadata'):  # Modules read there which version of them wrote the file.
        weights._metadata = given._metadata
    return weights


def saved_checkpoints(work_dir: str | Path) -> list[Path]:
    """Returns the regularly saved checkpoints in a work directory, the newest first."""
    found = [
        (int(match[1]), path)
        for path in Path(work_dir).glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def last_finite(newest: str | Path | None) -> Path | None:
    """Finds the last checkpoint of a run whose weights are all finite.

    The weights of the newest one may not be finite: the last step of an epoch can spoil them before any loss shows it.

    Args:
        newest: The run's newest checkpoint, with older ones in the same folder; None if the run has saved none.

    Returns:
        The checkpoint, or None.
    """
    if newest is None:
        return None
    newest = Path(newest)
    saved = saved_checkpoints(newest.parent)
    for path in saved[saved.index(newest) :] if newest in saved else []:
        try:
            weights = read_checkpoint(path, 'cpu')['state_dict'].values()
        except UserError:  # Without the guards, a full disk leaves half a file.
            continue
        if all(weight.isfinite().all() for weight in weights if weight.is_floating_point()):
            return path
    return None


def find_resumable(work_dir: str | Path) -> str | None:
    """Finds the checkpoint to resume from.

    It is the one that mmengine recorded last or, if a killed run left that one unreadable, the newest good one. One at
    an address (``out_dir`` of CheckpointHook) is not read here.

    Args:
        work_dir: The work directory of the run.

    Returns:
        The checkpoint, a file or an address, or None if there is none, as at the first start.

    Raises:
        UserError: If there are checkpoints and none of them is readable.
    """
    work_dir = Path(work_dir)
    note = work_dir / 'last_checkpoint'
    noted = note.read_text().strip() if note.exists() else ''
    if not is_local(noted):
        return noted
    # The folder may have been moved since: use the recorded file name, and its folder only if the file is not here.
    candidates = [path for path in (work_dir / Path(noted).name, Path(noted)) if noted and path.is_file()][:1]
    folders = [work_dir, *[path.parent for path in candidates if path.parent != work_dir]]
    candidates += [path for folder in folders for path in saved_checkpoints(folder) if path not in candidates]
    for path in candidates:
        try:
            read_checkpoint(path)
            return str(path)
        except UserError as error:
            print_log(f'{error}; trying the one before it', logger='current', level=logging.WARNING)
    if candidates:
        raise UserError(
            f'none of the {len(candidates)} checkpoints in {work_dir} is readable: remove them, or name a good one '
            '(--resume FILE)'
        )
    return None
