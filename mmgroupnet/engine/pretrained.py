"""Pretrained weights that a config asks for: whether they can be had, and a config without them."""

from collections.abc import Iterator, Mapping
from http.client import HTTPException

from mmengine.config import Config, ConfigDict
from mmengine.runner import CheckpointLoader

from mmgroupnet.engine.checkpoint import is_local
from mmgroupnet.engine.errors import UserError


def find_pretrained(node: object, path: str = 'model') -> Iterator[tuple[ConfigDict, str, str, str]]:
    """Finds what a model's config is initialised from.

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
    """Takes all pretrained weights out of a config, in place: its model starts from random ones."""
    for owner, key, *_ in list(find_pretrained(cfg.model)):
        owner[key] = None


def fetch_pretrained(cfg: Config) -> None:
    """Fetches the pretrained weights that lie elsewhere than on the disk; mmengine keeps them for later.

    Args:
        cfg: The config, as the user gave it.

    Raises:
        UserError: Naming the option that leaves them out, where there is no network.
    """
    for _, _, path, checkpoint in find_pretrained(cfg.model):
        if is_local(checkpoint):
            continue
        try:
            CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        except (OSError, HTTPException) as error:
            raise UserError(
                f'{path}: {checkpoint} cannot be fetched ({error}). To start from random weights: --cfg-options '
                f'{path}=None'
            ) from error
