"""Python variables of config files: top-level names that are no settings, such as ``num_bases = 4``.

A config file computes its settings from them when it is read. A value that they get later is not read.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmgroupnet.errors import UserError

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


def settings() -> set[str]:
    """The top-level keys that mmengine or our tools read when a config runs. All others are variables of the config
    file, or settings for custom code."""
    return {*inspect.signature(Runner).parameters, *_LOOKED_UP} - {'cfg'}


def where_used(cfg: Mapping, name: str, value: object) -> list[str]:
    """Dotted paths of the settings that use the value of a variable of the config file: they have the same value, and
    the same name or a distinctive value.

    Args:
        cfg: The config; a policy file has no settings but its policy.
        name: The variable.
        value: Its value when the settings were computed.
    """
    keys = settings() if 'model' in cfg else {'policy'}
    return list(_places({key: cfg[key] for key in cfg if key in keys}, name, value))


def _is_telling(value: object) -> bool:
    """Whether a value is so distinctive that an equal one elsewhere in the config is hardly a coincidence."""
    if isinstance(value, list | tuple):
        return any(map(_is_telling, value))
    return bool(value) and isinstance(value, Mapping) or isinstance(value, str) and '/' in value


def _places(node: object, name: str, value: object, path: str = '') -> Iterator[str]:
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


def _names(path: Path) -> tuple[set[str], set[str]]:
    """The names that a Python file assigns at its top level, and those that it reads anywhere."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    targets = (target for line in tree.body if isinstance(line, ast.Assign) for target in line.targets)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {target.id for target in targets if isinstance(target, ast.Name)}
    return assigned, {node.id for node in names if isinstance(node.ctx, ast.Load)}


def check_variables(path: Path, cfg: Mapping, bases: Sequence[tuple[Path, Path]], ours: Path) -> None:
    """Refuses a new value for a variable of one of our configs that a file inherits, if settings still have the old
    value.

    The configs of other libraries are not checked: some of them do that themselves. Only plain assignments
    (``NAME = ...``) of this file are.

    Args:
        path: The file.
        cfg: Its content, with everything that it inherits.
        bases: Each file that inherits, with one that it inherits from.
        ours: The folder of our configs.

    Raises:
        UserError: Naming the file, the variable, and the settings that have the old value.
    """
    inherited = [base for _, base in bases if ours in base.parents and base.suffix == '.py']
    if path.suffix != '.py' or not inherited:
        return
    assigned, read = _names(path)
    known = {*settings(), 'policy', '_base_'}
    for name in sorted(assigned - read - known):
        source = next((base for base in inherited if name in _names(base)[0]), None)
        if source is None:
            continue
        for direct in (base for file, base in bases if file == path):
            old = Config.fromfile(direct).get(name)
            places = where_used(cfg, name, old) if old is not None and old != cfg[name] else []
            if places:
                raise UserError(
                    f'{path}: {name} is a Python variable of {source}, whose settings were computed from the old '
                    f'value, so the new one would not be read. Override it where it is used: {", ".join(places)}'
                )
