"""Structured binary neural networks (Group-Net) for OpenMMLab.

The package exports lazily: ``import mmgroupnet`` imports neither torch nor any OpenMMLab library, so that tools which
only want the version stay light.
"""

from importlib import import_module
from typing import Any

from mmgroupnet.version import __version__

_EXPORTS = {
    'BinaryConv2d': 'mmgroupnet.layers',
    'LayerwiseBinaryConv2d': 'mmgroupnet.layers',
    'BinaryLinear': 'mmgroupnet.layers',
    'binarize': 'mmgroupnet.converters',
    'GroupNetResNet': 'mmgroupnet.models.backbones',
    'BinaryFPN': 'mmgroupnet.models.necks',
    'BinaryFCOSHead': 'mmgroupnet.models.dense_heads',
    'BinaryASPPHead': 'mmgroupnet.models.decode_heads',
    'BinaryFCNHead': 'mmgroupnet.models.decode_heads',
    'FCNScoreHead': 'mmgroupnet.models.decode_heads',
    'convert_official': 'mmgroupnet.converters',
}

__all__ = ['__version__', 'register_all_modules', *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def register_all_modules(init_default_scope: bool = True) -> None:
    """Registers every part of mmgroupnet.

    Configs do not need it: their types are written ``mmgroupnet.X``, which imports the named part. It is for
    interactive code.

    Args:
        init_default_scope: Make ``mmgroupnet`` the default scope, so that types may be written without their scope.
            Default: True.
    """
    from mmengine.registry import init_default_scope as set_default_scope

    from mmgroupnet import registry

    for name in registry.__all__:
        getattr(registry, name).import_from_location()
    if init_default_scope:
        set_default_scope('mmgroupnet')
