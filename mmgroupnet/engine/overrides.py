"""Checks ``--cfg-options``, which mean the same as in mmengine, for options that would silently not be read."""

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmgroupnet.engine.configs import accepted_arguments, resolve_type
from mmgroupnet.errors import ONE_SLIP, UserError, nearest
from mmgroupnet.model_configs import BINARIZED_TYPE, PACKED_TYPE

# Top-level keys that mmengine's runners or our tools read from a config, besides the arguments of the Runner.
_LOOKED_UP = (
    'activation_checkpointing',
    'add_guards',
    'backbone_checkpoint',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'init_weights_for_test_or_val',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _settings() -> set[str]:
    """The top-level keys that mmengine or our tools read when a config runs. All others are variables of the config
    file, or settings for custom code."""
    return {*inspect.signature(Runner).parameters, *_LOOKED_UP} - {'cfg'}


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


def _is_telling(value: object) -> bool:
    """Whether a value is so distinctive that an equal one elsewhere in the config is hardly a coincidence."""
    if isinstance(value, list | tuple):
        return any(map(_is_telling, value))
    return bool(value) and isinstance(value, Mapping) or isinstance(value, str) and '/' in value


def _places(node: object, name: str, value: object, path: str = '') -> Iterator[str]:
    """Dotted paths that use the value of a variable of the config file: they have the same value, and the same name or
    a distinctive value."""
    if isinstance(node, Mapping):
        entries: Iterable[tuple[Any, Any]] = node.items()
    else:
        entries = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in entries:
        where = f'{path}.{key}' if path else str(key)
        if child == value and (key == name or _is_telling(value)):
            yield where
        else:
            yield from _places(child, name, value, where)


def _check_first_key(cfg: Mapping, option: str) -> None:
    """Checks that the first key of an option is read when the config runs."""
    name, dot, rest = option.partition('.')
    settings = _settings()
    if name == 'launcher':
        raise UserError(f'--cfg-options {option} would not be read: give the option --launcher')
    if name in settings:
        instead = _read_instead(cfg, name)
        if instead is not None:
            raise UserError(f'--cfg-options {option} would not be read beside {instead}: give {instead}{dot}{rest}')
    elif name not in cfg:
        _warn(
            f'--cfg-options {option}: neither the config nor mmengine has a setting {name!r}'
            f'{nearest(name, {*settings, *cfg})}. Only code that reads it from the config will see it'
        )
    else:
        places = list(_places({key: cfg[key] for key in cfg if key in settings}, name, cfg[name]))
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
