"""Python variables of config files: top-level names that are no settings, such as ``num_bases = 4``.

A config file computes its settings from them when it is read. A value that they get later is not read.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
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
_BASES = '_base_'


def settings() -> set[str]:
    """The top-level keys that mmengine or our tools read when a config runs. All others are variables of the config
    file, or settings for custom code."""
    return {*inspect.signature(Runner).parameters, *_LOOKED_UP} - {'cfg'}


def where_used(cfg: Mapping, name: str, value: object) -> list[str]:
    """Dotted paths of the settings that use the value of a variable of the config file: they have the same value, and
    the same name or a distinctive value.

    Args:
        cfg: The config.
        name: The variable.
        value: Its value when the settings were computed.
    """
    return list(_places({key: cfg[key] for key in cfg if key in settings()}, name, value))


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


class _File:
    """The names that a config file assigns and reads.

    Args:
        path: A Python file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()
        tree = ast.parse(self.path.read_text(encoding='utf-8'))
        self.assigned = {
            target.id: ast.dump(line.value)
            for line in tree.body
            if isinstance(line, ast.Assign)
            for target in line.targets
            if isinstance(target, ast.Name)
        }
        self.read: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.read.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == _BASES:
                self.read.add(node.attr)


def _ancestors(path: str) -> Iterator[_File]:
    """The Python files that a config inherits from, the nearest first."""
    for name in Config._get_base_files(path):
        base, _ = Config._get_cfg_path(name, path)
        if base.endswith('.py'):
            yield _File(base)
            yield from _ancestors(base)


def check_variables(path: str | Path, cfg: Mapping, ours: Path) -> None:
    """Checks that a config file gives no new value to a variable from which one of our configs, that it inherits, has
    computed its settings already. Nothing would read the value.

    The configs of other libraries are not checked: some of them do that themselves.

    Args:
        path: The file.
        cfg: Its content, with everything that it inherits.
        ours: The folder of our configs.

    Raises:
        UserError: Naming the file, the variable, and the settings that use it.
    """
    if Path(path).suffix != '.py':
        return
    child = _File(str(path))
    ancestors = [file for file in _ancestors(str(path)) if ours in file.path.parents]
    for name in child.assigned.keys() - child.read - settings() - {_BASES}:
        values = [file for file in ancestors if file.assigned.get(name, child.assigned[name]) != child.assigned[name]]
        if values and any(name in file.read for file in ancestors):
            was = Config.fromfile(values[0].path).get(name)
            places = where_used(cfg, name, was) or sorted({'policy'} & cfg.keys())
            raise UserError(
                f'{path}: {name} is a Python variable of {values[0].path}, which has computed its settings already, so '
                f'the new value would not be read. Override it where it is used: {", ".join(places)}'
            )
