"""Finds the pretrained weights in a model's config, fetches them, and refuses weights that do not fit exactly.

mmengine alone loads the tensors that fit, logs the rest as a warning and goes on with random weights.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from mmgroupnet.checkpoints.match import describe_mismatch
from mmgroupnet.checkpoints.read import is_local, read_checkpoint
from mmgroupnet.checkpoints.safe import mmengine_globals
from mmgroupnet.errors import UserError


def find_pretrained(node: object, path: str = 'model') -> Iterator[tuple[ConfigDict, str, str, str]]:
    """Finds the weights that a model's config starts from.

    Args:
        node: The model's config, or a part of it.
        path: Its dotted path. Default: 'model'.

    Yields:
        The dict that names the weights, the key (``init_cfg`` or ``pretrained``), the dotted path of that key, and the
        weights.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            where = f'{path}.{key}'
            if key == 'pretrained' and isinstance(value, str):
                yield node, key, where, value
            elif key == 'init_cfg':
                for entry in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(entry, Mapping) and entry.get('type') == 'Pretrained':
                        yield node, key, where, entry['checkpoint']
            else:
                yield from find_pretrained(value, where)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from find_pretrained(value, f'{path}.{index}')


def leave_out_pretrained(cfg: Config) -> None:
    """Removes all pretrained weights from a config, in place: its model starts from random weights."""
    for owner, key, *_ in list(find_pretrained(cfg.model)):
        owner[key] = None


def _is_first_of_node() -> bool:
    """Whether this is the first process of its machine. The launcher's variables say so: there may be no process group
    yet."""
    return not any(
        int(os.environ.get(name) or 0) for name in ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
    )


def fetch_pretrained(cfg: Config) -> None:
    """Downloads the pretrained weights that are not local files, once per machine, into torch's download folder, where
    mmengine finds them later.

    Args:
        cfg: The config, as the user gave it.

    Raises:
        UserError: If weights cannot be downloaded or read, with the option that leaves them out.
    """
    if not _is_first_of_node():
        return
    for _, _, path, checkpoint in find_pretrained(cfg.model):
        if checkpoint.partition('://')[0] not in _SCHEMES:
            continue  # A local file, or in a store that mmengine reads again every time.
        try:
            fetch_checkpoint(checkpoint, map_location='meta')
        except UserError as error:
            raise UserError(f'{path}: {error}. To start from random weights: --cfg-options {path}=None') from error


def fetch_checkpoint(source: str, map_location: str = 'cpu') -> dict:
    """Reads a checkpoint from a file or the network, in torch's safe mode; mmengine's own loader does not use it.

    Args:
        source: A file, an ``https://`` address, or ``torchvision://`` or ``open-mmlab://`` and the name of a model.
        map_location: Device of its tensors; 'meta' reads only their shapes. Default: 'cpu'.

    Raises:
        UserError: If it does not exist, cannot be read (files that carry code are not read), or is not a dict.
    """
    if is_local(source):
        return read_checkpoint(source, map_location)
    address = _address(source)
    try:
        with mmengine_globals():
            checkpoint = torch.hub.load_state_dict_from_url(address, map_location=map_location, weights_only=True)
    except (OSError, HTTPException) as error:  # Most often there is no network.
        raise UserError(f'checkpoint {source} cannot be fetched: {error}') from error
    except Exception as error:  # Garbage, such as a login page, makes the unpickler raise any type.
        raise UserError(f"checkpoint {source} cannot be read in torch's safe mode: {error}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'checkpoint {source} holds a {type(checkpoint).__name__}, not a dict of weights')
    return checkpoint


def _address(source: str) -> str:
    scheme, _, name = source.partition('://')
    address = _SCHEMES[scheme](name) if scheme in _SCHEMES else None
    if address is None or not address.startswith('https://'):
        raise UserError(f'checkpoint {source}: give a file, an https:// address or torchvision:// and a name')
    return address


# The address of a name behind each scheme; None if there is no model of that name.
_SCHEMES: dict[str, Callable[[str], str | None]] = {
    'https': lambda name: f'https://{name}',
    'torchvision': lambda name: get_torchvision_models().get(name),
    'open-mmlab': lambda name: get_external_models().get(get_deprecated_model_names().get(name, name)),
    'mmcls': lambda name: get_mmcls_models().get(name),
}


def _pretrained_cfgs(module: BaseModule) -> Iterator[Mapping]:
    cfgs = module.init_cfg or []
    for cfg in [cfgs] if isinstance(cfgs, Mapping) else cfgs:
        if cfg['type'] in ('Pretrained', PretrainedInit):
            yield cfg


def check_pretrained(module: BaseModule) -> None:
    """Checks the checkpoints in the ``init_cfg`` of a part, before it loads them.

    Args:
        module: The part, with its ``init_cfg``: a ``Pretrained`` with ``prefix`` takes the tensors under this prefix,
            without it all tensors of the checkpoint.

    Raises:
        UserError: If a checkpoint cannot be read, is packed, or does not hold exactly the weights of this part.
    """
    for cfg in _pretrained_cfgs(module):
        source, prefix = cfg['checkpoint'], cfg.get('prefix') or ''
        where = f'init_cfg of {type(module).__name__}: checkpoint {source}'
        try:
            # Only its names and shapes are kept.
            if is_local(source):
                checkpoint = read_checkpoint(source)
            else:
                checkpoint = CheckpointLoader.load_checkpoint(source, map_location='meta', logger='silent')
        except UserError as error:
            raise UserError(f'init_cfg of {type(module).__name__}: {error}') from error
        weights = checkpoint.get('state_dict', checkpoint)
        if prefix:
            prefix = f'{prefix.removesuffix(".")}.'
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        else:
            weights = {key.removeprefix('module.'): value for key, value in weights.items()}
        if any(key.endswith('.bits') for key in weights):
            raise UserError(f'{where} is packed: give the one that it was packed from')
        mismatch = describe_mismatch(module, weights)
        if mismatch and not prefix and any(key.startswith('backbone.') for key in weights):
            mismatch += ". It is that of a whole model: give prefix='backbone.'"
        if mismatch:
            under = f' under {prefix!r}' if prefix else ''
            raise UserError(f'{where} does not hold exactly its weights{under} ({mismatch})')
