"""Weights that a part starts from fit it exactly or are refused.

mmengine alone loads what fits, logs the rest as a warning and goes on with random weights.
"""

import pickle
from collections.abc import Iterator, Mapping

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models
from torch import Tensor, nn

# How many keys an error lists before it only counts them.
_LISTED_KEYS = 8


class PretrainedError(ValueError):
    """The checkpoint that a part starts from cannot be read or does not fit it. The message says why."""


def listing(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    rest = len(keys) - _LISTED_KEYS
    return ', '.join(keys[:_LISTED_KEYS]) + (f' and {rest} more' if rest > 0 else '')


def describe_mismatch(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being that of a module: names that are missing (other than
    ``num_batches_tracked``), unexpected, or of another shape; '' where nothing does."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state_dict and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state_dict if key not in wanted]
    other_shape = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if isinstance(value, Tensor)
        and isinstance(state_dict.get(key), Tensor)
        and state_dict[key].shape != value.shape
    ]
    problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': other_shape}
    return '; '.join(f'{len(keys)} {kind}: {listing(keys)}' for kind, keys in problems.items() if keys)


def _pretrained_cfgs(module: BaseModule) -> Iterator[Mapping]:
    cfgs = module.init_cfg or []
    for cfg in [cfgs] if isinstance(cfgs, Mapping) else cfgs:
        if cfg['type'] in ('Pretrained', PretrainedInit):
            yield cfg


def fetch_checkpoint(source: str) -> dict:
    """Reads a checkpoint with its data, from the disk or the network, in torch's safe mode, which mmengine's own loader
    does not ask for.

    Args:
        source: A file, an ``https://`` address, or ``torchvision://`` and the name of a model.

    Raises:
        PretrainedError: If it does not exist, cannot be read (a file that carries code is not), or is no dict.
    """
    try:
        if '://' not in source:
            checkpoint = torch.load(source, map_location='cpu', weights_only=True)
        else:
            checkpoint = torch.hub.load_state_dict_from_url(_address(source), map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise PretrainedError(f'checkpoint {source} does not exist') from error
    except OSError as error:  # No network, above all.
        raise PretrainedError(f'checkpoint {source} cannot be fetched: {error}') from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PretrainedError(f"checkpoint {source} cannot be read in torch's safe mode: {error}") from error
    if not isinstance(checkpoint, dict):
        raise PretrainedError(f'checkpoint {source} holds a {type(checkpoint).__name__}, not a dict of weights')
    return checkpoint


def _address(source: str) -> str:
    scheme, name = source.split('://')
    address = get_torchvision_models().get(name) if scheme == 'torchvision' else source
    if address is None or not address.startswith('https://'):
        raise PretrainedError(f'checkpoint {source}: give a file, an https:// address or torchvision:// and a name')
    return address


def check_pretrained(module: BaseModule) -> None:
    """Checks the checkpoints that a part asks for, before it loads them.

    Args:
        module: The part, with its ``init_cfg``: a ``Pretrained`` with ``prefix`` takes what the checkpoint holds under
            this prefix, one without it all that the checkpoint holds.

    Raises:
        PretrainedError: If a checkpoint does not exist, is packed, or does not hold exactly the weights of this part.
    """
    for cfg in _pretrained_cfgs(module):
        source, prefix = cfg['checkpoint'], cfg.get('prefix') or ''
        where = f'init_cfg of {type(module).__name__}: checkpoint {source}'
        try:
            # Names and shapes are all that is kept of it.
            checkpoint = CheckpointLoader.load_checkpoint(source, map_location='meta', logger='silent')
        except FileNotFoundError as error:
            raise PretrainedError(f'{where} does not exist') from error
        given = checkpoint.get('state_dict', checkpoint)
        if prefix:
            prefix = f'{prefix.removesuffix(".")}.'
            given = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        else:
            given = {key.removeprefix('module.'): value for key, value in given.items()}
        if any(key.endswith('.bits') for key in given):
            raise PretrainedError(f'{where} is packed: give the one that it was packed from')
        mismatch = describe_mismatch(module, given)
        if mismatch and not prefix and any(key.startswith('backbone.') for key in given):
            mismatch += ". It is that of a whole model: give prefix='backbone.'"
        if mismatch:
            under = f' under {prefix!r}' if prefix else ''
            raise PretrainedError(f'{where} does not hold exactly its weights{under} ({mismatch})')
