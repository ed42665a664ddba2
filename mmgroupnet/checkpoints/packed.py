"""Writes, reads and checks files of packed models; docs/packed_checkpoint.md describes the format."""

import hashlib
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from mmgroupnet.checkpoints.read import is_packed, read_checkpoint
from mmgroupnet.checkpoints.write import as_plain, write_checkpoint
from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import is_packed_config, packed_model, with_data_preprocessor
from mmgroupnet.type_names import name_types

VERSION = 1


def packed_config(cfg: Config) -> Config:
    """A copy of a config with a packed model, in the form that every inferencer reads."""
    cfg = Config(cfg.to_dict())
    name_types(cfg)
    inner, beside = cfg.get('model'), cfg.get('data_preprocessor')
    if is_packed_config(cfg):
        inner, beside = cfg.model.model, cfg.model.get('data_preprocessor') or beside
    # Inferencers of mmdet and mmseg read the data preprocessor only inside the model.
    cfg.model = packed_model(with_data_preprocessor(inner, beside))
    return cfg


def _checksum(meta: Mapping, state_dict: Any) -> str:
    """sha256 of the whole content of a packed checkpoint, see docs/packed_checkpoint.md."""
    versions = sorted((name, sorted(entry.items())) for name, entry in state_dict._metadata.items())
    digest = hashlib.sha256(repr((meta['packed']['version'], meta['cfg'], meta.get('dataset_meta'))).encode())
    digest.update(repr(versions).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_packed(
    model: nn.Module,
    layers: Sequence[str],
    cfg: Config,
    path: str | Path,
    dataset_meta: Mapping | None = None,
) -> None:
    """Writes a packed checkpoint atomically.

    Args:
        model: A packed model.
        layers: Names of its packed layers.
        cfg: Its config, with the model before packing or as ``mmgroupnet.Packed``.
        path: The file; its folder is created.
        dataset_meta: Classes and palette, as in the checkpoint of the trained model. Default: None.

    Raises:
        UserError: If the file cannot be written.
    """
    state_dict: Any = model.state_dict()  # an ordered dict with the versions of its modules
    for name in layers:
        # The float conv of this name reads this entry, wherever its bits are stored: see BinaryConv2d.
        state_dict._metadata[name] = dict(version=1, packed=True)
    meta = dict(cfg=packed_config(cfg).pretty_text, packed=dict(version=VERSION))
    if dataset_meta is not None:
        meta['dataset_meta'] = as_plain(dataset_meta)
    meta['packed']['sha256'] = _checksum(meta, state_dict)
    write_checkpoint(dict(meta=meta, state_dict=state_dict), path)


def _is_whole(path: Path) -> bool:
    """Whether a zip file's own checksums are right; torch ignores them and trusts the sizes in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # Garbage makes the reader raise any type.
        return False


def read_packed(path: str | Path) -> dict:
    """Reads a packed checkpoint in torch's safe mode and checks all of it.

    Args:
        path: The file.

    Returns:
        ``dict(meta=dict(cfg=..., packed=dict(version=1, sha256=...), dataset_meta=...), state_dict=...)``;
        ``dataset_meta`` may be missing.

    Raises:
        UserError: If the file is missing, damaged, of another version, or not a packed checkpoint.
    """
    path = Path(path).expanduser()
    damaged = UserError(f'packed checkpoint {path} is damaged: copy it again, or pack the float checkpoint again')
    if path.is_file() and zipfile.is_zipfile(path) and not _is_whole(path):
        raise damaged
    found = read_checkpoint(path)
    if not is_packed(found):
        raise UserError(f'checkpoint {path} is not packed: mmgroupnet pack packs it')
    version = found['meta']['packed'].get('version') if isinstance(found['meta']['packed'], dict) else None
    if type(version) is int and version != VERSION:
        raise UserError(
            f'packed checkpoint {path} has version={version}, this mmgroupnet reads version {VERSION}: pack the float '
            'checkpoint again'
        )
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        meta, state_dict = content['meta'], content['state_dict']
        is_sound = (
            set(content) == {'meta', 'state_dict'}
            and set(meta) - {'dataset_meta'} == {'cfg', 'packed'}
            and set(meta['packed']) == {'version', 'sha256'}
            and set(vars(state_dict)) == {'_metadata'}
            and meta['packed']['sha256'] == _checksum(meta, state_dict)
        )
    except Exception as error:  # As above, for garbage that torch reads.
        raise damaged from error
    if not is_sound:
        raise damaged
    return content


def adopt_packed(cfg: Config, path: str | Path) -> bool:
    """Makes a config fit its checkpoint: the model of a packed one becomes ``mmgroupnet.Packed``.

    Args:
        cfg: The config, changed in place.
        path: The checkpoint, a local file.

    Returns:
        Whether the checkpoint is packed.

    Raises:
        UserError: If the checkpoint is missing, damaged or not a checkpoint, or if the config's model is packed and the
            checkpoint is not.
    """
    if not is_packed(read_checkpoint(path)) and not is_packed_config(cfg):
        return False
    read_packed(path)
    if not is_packed_config(cfg):
        cfg.model = packed_model(cfg.model)
    if (cfg.get('test_cfg') or {}).get('fp16'):
        print_log(
            f'test_cfg.fp16=True: the packed layers of {path} compute in float32; those in between in half precision',
            logger='current',
            level=logging.WARNING,
        )
    return True


def check_device(path: str | Path, device: str) -> None:
    """Checks that a packed checkpoint will run on the CPU.

    Args:
        path: The packed checkpoint, for the error.
        device: The device, such as 'cuda:0'.

    Raises:
        UserError: If the device is not the CPU.
    """
    if torch.device(device).type != 'cpu':
        raise UserError(f'--device {device}: packed checkpoint {path} runs only on the CPU, give --device cpu')
