"""Replaces the types in a config by their registered names, which every reader of a config expects.

A config in pure Python holds classes; its dump (in a work directory or checkpoint) holds their dotted names. mmengine
builds both, but the inferencers of mmdet, mmseg and mmpretrain look for a transform with the name
``LoadImageFromFile``.
"""

from collections.abc import Callable, Iterator

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

# The registries of mmengine, from which those of all libraries inherit.
ROOTS = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]


def name_types(cfg: Config) -> None:
    """Replaces classes and their dotted names by their registered names.

    Args:
        cfg: The config, changed in place. A class stays if it is not registered, or if another class hides its name in
            the config's ``default_scope``.
    """
    names: dict[int, str | None] = {}
    for node in _typed_dicts(cfg._cfg_dict):
        try:
            found = _object(node['type'])
        except ImportError:  # The error will come if the part is built; not every part is.
            continue
        if found is None:
            continue
        if id(found) not in names:
            names[id(found)] = _registered_name(found, cfg.get('default_scope'))
        if names[id(found)] is not None:
            node['type'] = names[id(found)]


def _object(kind: object) -> object | None:
    """The class of a type that is a class or a dotted name; None for a registered name."""
    if not isinstance(kind, str):
        return kind
    parts = kind.split('.')
    # A name of two parts is a scope and a registered name.
    return get_object_from_string(kind) if len(parts) > 2 and all(map(str.isidentifier, parts)) else None


def _typed_dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        if 'type' in node:
            yield node
        for child in dict.values(node):  # ConfigDict's own values() would import unused classes
            yield from _typed_dicts(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _typed_dicts(child)


def _registered_name(found: object, scope: str | None) -> str | None:
    """The shortest name by which mmengine finds a class in a default scope; None if it is not registered."""
    for root in ROOTS:
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
    """The class of a name without scope in a registry: the registry's own entry, or that of the nearest parent."""
    registry.import_from_location()
    while registry is not None:
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent
    return None
