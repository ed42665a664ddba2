"""Loading a config and checking it before anything is built from it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import mmengine.registry
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner

import mmgroupnet.registry
from mmgroupnet.errors import UserError, nearest
from mmgroupnet.type_names import name_types

_ROOTS = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
_OURS = [getattr(mmgroupnet.registry, name) for name in mmgroupnet.registry.__all__]

# What a config may hold at its top besides the arguments of the Runner: what the Runner looks up in its config, and
# what the tools do; strategy is FlexibleRunner's.
_LOOKED_UP = (
    'activation_checkpointing',
    'backbone_checkpoint',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)


def load_config(name: str) -> Config:
    """Loads a config; classes in it become the names that they are registered by.

    Args:
        name: A file, or a config of an installed OpenMMLab library,
            ``mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py``.

    Raises:
        UserError: If there is no such file.
    """
    if '::' in name:
        library = name.split('::')[0]
        if find_spec(library) is None:  # mmengine would install it.
            raise UserError(f'config {name}: {library} is not installed')
        try:
            cfg = get_config(name)
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise UserError(f'config {name}: no installed OpenMMLab library has it ({error})') from error
    else:
        path = Path(name)
        if not path.is_file():
            siblings = [str(found) for found in path.parent.glob('*.py')]
            raise UserError(f'config {name} does not exist{nearest(str(path), siblings)}')
        cfg = Config.fromfile(path)
    name_types(cfg)
    return cfg


def resolve_type(name: str | type | Callable, scope: str | None) -> Callable | None:
    """Finds the class that a config's ``type`` names, in any registry.

    Args:
        name: A registered name such as ``'FCOS'`` or ``'mmgroupnet.BinaryFPN'``, or the class itself.
        scope: The config's ``default_scope``.

    Returns:
        The class (or function), or None where nothing of that name is registered.
    """
    if not isinstance(name, str):
        return name
    with DefaultScope.overwrite_default_scope(scope):
        for root in _ROOTS:
            with root.switch_scope_and_registry(None) as registry:
                found = registry.get(name)
            if found is not None:
                return found
    return None


def accepted_arguments(part: Callable) -> set[str] | None:
    """Names of a class' or function's arguments, with those that ``**kwargs`` hand on to the base classes.

    Returns:
        The names, or None where it takes any.
    """
    if not inspect.isclass(part):
        parameters = inspect.signature(part).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        return None if takes_any else {parameter.name for parameter in parameters}
    names: set[str] = set()
    for base in part.__mro__:
        if base is object or '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names |= {
            parameter.name
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _children(node: object, path: str) -> Iterator[tuple[str, object, object]]:
    """Dotted path, key and value of what is in a dict or list of a config."""
    if isinstance(node, Mapping):
        entries = node.items()
    else:
        entries = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in entries:
        yield f'{path}.{key}' if path else str(key), key, child


def _typed_dicts(node: object, path: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict with a ``type`` in a config, with its dotted path; ``binary_cfg`` stands for binary convs."""
    if isinstance(node, Mapping):
        if 'type' in node:
            yield path, node
        elif path.endswith('.binary_cfg'):
            yield path, dict(node, type='mmgroupnet.BinaryConv2d')
    for where, _, child in _children(node, path):
        yield from _typed_dicts(child, where)


def _registered_names() -> set[str]:
    for registry in _OURS:
        registry.import_from_location()
    return {f'mmgroupnet.{name}' for registry in _OURS for name in registry.module_dict}


def _hands_on_kwargs(part: type) -> bool:
    """Whether a class takes ``**kwargs``; of foreign classes nobody knows where these go."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(part).parameters.values())


def check_arguments(cfg: Config) -> None:
    """Checks that the parts of mmgroupnet in a config exist, and that all parts of the model take their arguments.

    Raises:
        UserError: Naming the part, the key and the nearest valid key.
    """
    scope = cfg.get('default_scope')
    for path, part_cfg in _typed_dicts(cfg.to_dict()):
        name = part_cfg['type']
        ours = str(name).startswith('mmgroupnet.') or getattr(name, '__module__', '').startswith('mmgroupnet.')
        # Stock layers, optimizers and transforms are built by helpers that take keys for themselves; BaseModules are
        # built as they are written.
        if not ours and path.split('.')[0] != 'model':
            continue
        part = resolve_type(name, scope)
        if part is None:
            if ours:
                raise UserError(f'{path}.type={name!r} is not registered{nearest(name, _registered_names())}')
            continue
        if not ours and not (inspect.isclass(part) and issubclass(part, BaseModule)):
            continue
        accepted = accepted_arguments(part)
        if accepted is None or (not ours and _hands_on_kwargs(part)):
            continue
        if inspect.isclass(part) and issubclass(part, Hook):
            accepted = accepted | {'priority'}
        for key in part_cfg:
            if key not in accepted | {'type', '_scope_'}:
                raise UserError(
                    f'{path}: {part.__name__} takes no argument {key!r}{nearest(key, accepted)}. '
                    f'It takes: {", ".join(sorted(accepted))}'
                )


def _settings() -> set[str]:
    """The top-level keys of a config that are read when it runs; all others are variables of its file."""
    return {*inspect.signature(Runner).parameters, *_LOOKED_UP} - {'cfg'}


def _places(node: object, name: str, value: object, path: str = '') -> Iterator[str]:
    """Dotted paths of a config where the value of a variable of its file may have gone: what has its name and value."""
    for where, key, child in _children(node, path):
        if child == value and (key == name or isinstance(value, str)):
            yield where
        else:
            yield from _places(child, name, value, where)


def _check_setting(cfg: Mapping, path: str) -> None:
    """Checks that the first key of an override is read when the config runs."""
    name = path.split('.')[0]
    settings = _settings()
    if name in settings:
        return
    if name not in cfg:
        raise UserError(f'--cfg-options {path}: the config has no key {name!r}{nearest(name, {*settings, *cfg})}')
    places = list(_places({key: cfg[key] for key in cfg if key in settings}, name, cfg[name]))
    raise UserError(
        f'--cfg-options {path}: {name} is a variable of the config file, whose value went where it is used when the '
        f'file was read. Change it there{": " + ", ".join(places) if places else ""}'
    )


def _takes(node: Mapping, path: list[str], scope: str | None) -> set[str]:
    """Names of what the part at a path takes, as far as is known."""
    if path == ['optim_wrapper']:  # The Runner fills in the type, and its constructor takes keys for itself.
        wrapper = resolve_type(node.get('type', OptimWrapper), scope)
        return (accepted_arguments(wrapper) or set()) | {'constructor', 'paramwise_cfg'}
    part = resolve_type(node['type'], scope) if 'type' in node else None
    return (part is not None and accepted_arguments(part)) or set()


def check_overrides(cfg: Config, options: Mapping[str, object]) -> None:
    """Checks that ``--cfg-options`` change settings that exist and are read.

    The first key must be a setting, not a variable of the config's file: its value is in place when the file has been
    read. All others but the last must be in the config, or be an argument of the part that they stand in. Without this,
    ``model.bakbone.depth=18`` would make a new dict that nobody reads.

    Args:
        cfg: The config before the options are merged.
        options: Dotted paths and their values.

    Raises:
        UserError: Naming the first key that is not there and the nearest one that is.
    """
    for path in options:
        node: object = cfg.to_dict()
        _check_setting(node, path)
        keys = path.split('.')
        for depth, key in enumerate(keys):
            where = '.'.join(keys[:depth])
            if isinstance(node, list | tuple):
                if not key.isdigit() or int(key) >= len(node):
                    raise UserError(
                        f'--cfg-options {path}: {where} is a list of {len(node)} entries, {key!r} is no index of it'
                    )
                node = node[int(key)]
            elif not isinstance(node, Mapping):
                raise UserError(f'--cfg-options {path}: {where} is {node!r}, which has no keys')
            elif key in node:
                node = node[key]
            elif depth in (0, len(keys) - 1):
                break  # A setting that the config leaves out; whether a part takes it is check_arguments' business.
            elif key in _takes(node, keys[:depth], cfg.get('default_scope')):
                break  # An argument that the config leaves at its default.
            else:
                raise UserError(
                    f'--cfg-options {path}: {where} has no key {key!r}{nearest(key, node)}. '
                    f'Its keys: {", ".join(map(str, node))}'
                )
