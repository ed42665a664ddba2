"""Finds the OpenMMLab library that a config is for."""

from collections.abc import Mapping

from mmengine.config import Config

from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.errors import UserError

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def library_of(cfg: Config) -> str | None:
    """The library of the model that a config describes.

    It is the ``default_scope`` or, if that is not one of them (as in many configs in pure Python), the library of the
    model's class or of one of its bases. Wrappers (packed, binarised, test-time augmentation) count as the model
    inside.

    Returns:
        One of :data:`LIBRARIES`, or None.
    """
    scope = cfg.get('default_scope')
    if scope in LIBRARIES:
        return scope
    model = cfg.get('model')
    while isinstance(model, Mapping) and 'type' in model:
        part = resolve_type(model['type'], scope)
        for base in getattr(part, '__mro__', ()):
            library = base.__module__.partition('.')[0]
            if library in LIBRARIES:
                return library
        model = model.get('model') or model.get('module')
    return None


def required_library(cfg: Config, option: str) -> str:
    """The library of a config, as :func:`library_of`.

    Args:
        cfg: The config.
        option: What needs a library, for the error.

    Raises:
        UserError: If the config is of none of them.
    """
    library = library_of(cfg)
    if library is None:
        raise UserError(
            f'{option} needs a config whose default_scope is one of {", ".join(LIBRARIES)}, not '
            f'{cfg.get("default_scope")!r}'
        )
    return library
