"""Checks the arguments of the parts in a config before anything is built."""

import inspect
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any, Union, get_args, get_origin

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS

import mmgroupnet.registry
from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.engine.variables import settings
from mmgroupnet.errors import ONE_SLIP, UserError, nearest
from mmgroupnet.model_configs import type_name
from mmgroupnet.type_names import ROOTS

_OURS = [getattr(mmgroupnet.registry, name) for name in mmgroupnet.registry.__all__]
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(part: Callable) -> tuple[dict[str, tuple[inspect.Parameter, str]], bool]:
    """The parameters of a class or function, including those that ``**kwargs`` pass on to base classes.

    Returns:
        Each parameter with the module that defines it; and whether the part takes any other.
    """
    functions = [part]
    if inspect.isclass(part):
        functions = [vars(base)['__init__'] for base in part.__mro__[:-1] if '__init__' in vars(base)]
    found: dict[str, tuple[inspect.Parameter, str]] = {}
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())[1 if inspect.isclass(part) else 0 :]
        for parameter in parameters:
            if parameter.kind in _NAMED:
                found.setdefault(parameter.name, (parameter, function.__module__))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, not inspect.isclass(part)


def accepted_arguments(part: Callable) -> set[str] | None:
    """Names of the arguments of a class or function, including those that ``**kwargs`` pass on to base classes.

    Returns:
        The names, or None if it takes any.
    """
    parameters, takes_any = _parameters(part)
    return None if takes_any else set(parameters)


def _takes_any(part: Callable) -> bool:
    """Whether a part takes ``**kwargs``, which it may pass on to another part."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(part).parameters.values())


def _typed_dicts(node: object, path: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict with a ``type`` in a config, with its dotted path; ``binary_cfg`` stands for binary convs."""
    if isinstance(node, Mapping):
        if 'type' in node:
            yield path, node
        elif path.endswith('.binary_cfg'):
            yield path, dict(node, type='mmgroupnet.BinaryConv2d')
        # parse_policy checks the rules of a policy.
        entries: Iterable[tuple[Any, Any]] = () if 'become' in node else node.items()
    else:
        entries = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in entries:
        yield from _typed_dicts(child, f'{path}.{key}' if path else str(key))


def _registered_names() -> set[str]:
    for registry in _OURS:
        registry.import_from_location()
    return {f'mmgroupnet.{name}' for registry in _OURS for name in registry.module_dict}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config fits a type hint, as far as the hint is one of the plain types of configs."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (None, types.NoneType):
        return value is None
    if origin is bool:
        return isinstance(value, bool) or value in (0, 1)
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real)
    if origin is str:
        return isinstance(value, str | PathLike)
    if origin is dict:
        return isinstance(value, dict)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(entry, each) for entry in value.values() for each in arguments[1:]
        )
    if origin in (Sequence, list, tuple):  # a list of a config may stand for a tuple
        of_one_kind = len(arguments) == 1 or arguments[1:] == (...,)
        is_list = isinstance(value, list | tuple | range)
        return is_list and (not of_one_kind or all(_fits(entry, arguments[0]) for entry in value))
    return True


def _spell(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return text.replace('collections.abc.', '').replace('typing.', '')


def _check_values(path: str, name: str, part: Callable, given: Mapping) -> None:
    """Checks that a part of ours gets the arguments that it needs, and values of the types that it takes."""
    # A conv, a norm or a quantizer gets further arguments, such as the number of channels, from the layer that builds
    # it. A dict in a variable of the config file may hold only some of the arguments of a part.
    is_whole = inspect.isclass(part) and issubclass(part, BaseModule | Hook) and path.split('.')[0] in settings()
    own = inspect.signature(part).parameters  # a class may give its base what that needs
    for key, (parameter, module) in _parameters(part)[0].items():
        if not module.startswith('mmgroupnet.'):
            continue
        if key not in given:
            if is_whole and key in own and parameter.default is parameter.empty:
                raise UserError(f'{path}: {name} needs {key}')
        elif parameter.annotation is not parameter.empty and not _fits(given[key], parameter.annotation):
            raise UserError(f'{path}.{key}={given[key]!r}: {name} takes {_spell(parameter.annotation)}')


def check_arguments(cfg: Config) -> None:
    """Checks that the parts of mmgroupnet in a config exist, accept their arguments, and get those that they need.

    For other modules of the model, an argument that looks misspelt is only a warning.

    Raises:
        UserError: Naming the part of mmgroupnet, the key and the nearest valid key, or the type of the value.
    """
    content, scope = cfg.to_dict(), cfg.get('default_scope')
    for path, part_cfg in _typed_dicts(content):
        name = part_cfg['type']
        ours = str(name).startswith('mmgroupnet.') or getattr(name, '__module__', '').startswith('mmgroupnet.')
        if not ours and path.split('.')[0] != 'model':
            continue
        part = resolve_type(name, scope, ROOTS if ours else [MODELS])
        if part is None and ours:
            raise UserError(f'{path}.type={name!r} is not registered{nearest(name, _registered_names())}')
        if part is None and f'mmgroupnet.{name}' in _registered_names():
            raise UserError(f"{path}.type={name!r} is not registered (did you mean 'mmgroupnet.{name}'?)")
        if part is not None and path.split('.')[0] == 'model':
            _check_pretrained(path, part, part_cfg)
        if part is None or (not ours and _takes_any(part)):
            continue
        accepted = accepted_arguments(part)
        if accepted is None:
            continue
        if inspect.isclass(part) and issubclass(part, Hook):
            accepted = accepted | {'priority'}
        for key in part_cfg:
            if key in accepted | {'type', '_scope_'}:
                continue
            message = f'{path}: {part.__name__} takes no argument {key!r}'
            if ours:
                raise UserError(f'{message}{nearest(key, accepted)}. It takes: {", ".join(sorted(accepted))}')
            hint = nearest(key, accepted, ONE_SLIP)
            if hint:
                print_log(message + hint, logger='current', level=logging.WARNING)
        if ours:
            _check_values(path, type_name(part_cfg), part, part_cfg)


def _check_pretrained(path: str, part: Callable, part_cfg: Mapping) -> None:
    """Refuses ``pretrained`` of a segmentor around one of our backbones: mmseg hands it to the backbone."""
    backbone = part_cfg.get('backbone')
    is_ours = isinstance(backbone, Mapping) and str(backbone.get('type')).startswith('mmgroupnet.')
    if is_ours and part.__module__.startswith('mmseg.') and part_cfg.get('pretrained') is not None:
        raise UserError(
            f'{path}.pretrained={part_cfg["pretrained"]!r} is meant for a float backbone, set {path}.pretrained=None; '
            'init_cfg of the backbone takes the weights of a binary one'
        )
