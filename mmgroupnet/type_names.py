"""Types of a config by their registered names, as every reader of a config expects them.

A config of pure Python holds classes, and what is written of it (in a work directory, in a checkpoint) the dotted names
of these. mmengine builds either, but the inferencers of mmdet, mmseg and mmpretrain look for a transform that is called
``LoadImageFromFile``.
"""

from collections.abc import Callable, Iterator

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

_ROOTS = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]


def name_types(cfg: Config) -> None:
    """Replaces classes, and their dotted names, by the names that they are registered by.

    Args:
        cfg: The config, changed in place. What is not registered, or what another class hides in the config's
            ``default_scope``, stays.
    """
    names: dict[int, str | None] = {}
    for node in _typed_dicts(cfg._cfg_dict):
        try:
            found = _object(node['type'])
        except ImportError:  # Whoever builds it will see; not every part of a config is.
            continue
        if found is None:
            continue
        if id(found) not in names:
            names[id(found)] = _registered_name(found, cfg.get('default_scope'))
        if names[id(found)] is not None:
            node['type'] = names[id(found)]


def _object(kind: object) -> object | None:
    """The class that a type is or names by its module; None for a registered name."""
    if not isinstance(kind, str):
        return kind
    parts = kind.split('.')
    # Two parts are a scope and a name.
    return get_object_from_string(kind) if len(parts) > 2 and all(map(str.isidentifier, parts)) else None


def _typed_dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        if 'type' in node:
            yield node
        for child in dict.values(node):  # ConfigDict's own would import what is not used
            yield from _typed_dicts(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _typed_dicts(child)


def _registered_name(found: object, scope: str | None) -> str | None:
    """The shortest name by which mmengine finds a class in a default scope; None where it is not registered."""
    for root in _ROOTS:
        reader = root.children.get(scope, root)
        for registry in (reader, root, *root.children.values()):
            for name, registered in registry.module_dict.items():
                if registered is not found:
                    continue
                if _look_up(reader, name) is found:
                    return name
                if _look_up(registry, name) is found:
                    return f'{registry.scope}.{name}'
    return None


def _look_up(registry: Registry, name: str) -> Callable | None:
    """What a name without a scope means in a registry: its own entry, or that of the next one above it."""
    registry.import_from_location()
    while registry is not None:
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent
    return None
