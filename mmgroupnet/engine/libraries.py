"""Which OpenMMLab library a config is for, and how parts of a config are called."""

from collections.abc import Mapping

from mmengine.config import Config

from mmgroupnet.engine.configs import resolve_type

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def library_of(cfg: Config) -> str | None:
    """The library whose kind of model a config describes.

    It is the ``default_scope``, or, where that is none of them, as in many configs of pure Python, the library of the
    model's class or of one of its bases. Models around a model (packed, binarised, of test-time augmentation) count as
    what is inside.

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


def type_name(part: Mapping) -> str:
    """The bare name of a part's class: of ``'mmdet.FCOS'``, of ``'mmdet.models.detectors.FCOS'``, and of the class."""
    kind = part['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
