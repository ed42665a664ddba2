"""Checks ``--cfg-options``, which mean the same as in mmengine, for options that would silently not be read."""

import logging
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.logging import print_log

from mmgroupnet.engine.arguments import accepted_arguments
from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.engine.variables import settings, where_used
from mmgroupnet.errors import ONE_SLIP, UserError, nearest
from mmgroupnet.model_configs import BINARIZED_TYPE, PACKED_TYPE


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _read_instead(cfg: Mapping, name: str) -> str | None:
    """The setting that is read instead of another one, if any."""
    if name == 'find_unused_parameters' and cfg.get('model_wrapper_cfg'):
        return 'model_wrapper_cfg.find_unused_parameters'
    path, model = 'model', cfg.get('model')
    while name == 'data_preprocessor' and isinstance(model, Mapping):
        if name in model:
            return f'{path}.{name}'
        path = f'{path}.model'
        model = model.get('model') if model.get('type') in (BINARIZED_TYPE, PACKED_TYPE) else None
    return None


def _check_first_key(cfg: Mapping, option: str) -> None:
    """Checks that the first key of an option is read when the config runs."""
    name, dot, rest = option.partition('.')
    known = settings()
    if name == 'launcher':
        raise UserError(f'--cfg-options {option} would not be read: give the option --launcher')
    if name in known:
        instead = _read_instead(cfg, name)
        if instead is not None:
            raise UserError(f'--cfg-options {option} would not be read beside {instead}: give {instead}{dot}{rest}')
    elif name not in cfg:
        _warn(
            f'--cfg-options {option}: neither the config nor mmengine has a setting {name!r}'
            f'{nearest(name, {*known, *cfg})}. Only code that reads it from the config will see it'
        )
    else:
        places = where_used(cfg, name, cfg[name])
        if places:
            raise UserError(
                f'--cfg-options {option}: {name} is a Python variable of the config file, not a setting. Override it '
                f'where it is used: {", ".join(places)}'
            )
        _warn(
            f'--cfg-options {option}: {name} is no setting of mmengine. Only code that reads it from the config will '
            'see it; what the config file computed of it stays'
        )


def _warn_of_misspelling(cfg: Mapping, option: str, node: Mapping, where: str, key: str) -> None:
    """Warns if a key that a dict of the config lacks is similar to one that it has or may have."""
    part = resolve_type(node['type'], cfg.get('default_scope')) if 'type' in node else None
    taken = (accepted_arguments(part) or set()) if part is not None else set()
    hint = nearest(key, {*map(str, node), *taken}, ONE_SLIP)
    if hint and key not in taken:
        _warn(f'--cfg-options {option}: {where} has no key {key!r}{hint}')


def check_overrides(cfg: Config, options: Mapping[str, object]) -> dict[str, object]:
    """Checks ``--cfg-options``.

    They mean the same as in mmengine: a missing key is created. A key that looks misspelt is a warning. A key that
    cannot be created, or would not be read where the user means it, is an error.

    Args:
        cfg: The config before the options are merged.
        options: Dotted paths and their values.

    Returns:
        The options for ``Config.merge_from_dict``, which does not support negative indices of lists.

    Raises:
        UserError: The message names the key and what the config has instead.
    """
    content = cfg.to_dict()
    checked = {}
    for option, value in options.items():
        _check_first_key(content, option)
        keys, node = option.split('.'), content
        for depth, key in enumerate(keys):
            where = '.'.join(keys[:depth])
            if isinstance(node, list):
                try:
                    index = range(len(node))[int(key)]
                except (ValueError, IndexError):
                    raise UserError(
                        f'--cfg-options {option}: {where} is a list of {len(node)} entries, {key!r} is no index of it'
                    ) from None
                keys[depth], node = str(index), node[index]
            elif not isinstance(node, Mapping):
                raise UserError(f'--cfg-options {option}: {where} is {node!r}, which has no keys')
            elif key in node:
                node = node[key]
            else:
                if depth:
                    _warn_of_misspelling(content, option, node, where, key)
                break
        checked['.'.join(keys)] = value
    return checked
