"""Helpers for model configs: wrapped models, the data preprocessor beside them, and names of types."""

import copy
from collections.abc import Mapping

from mmengine.config import Config, ConfigDict

from mmgroupnet.errors import UserError

PACKED_TYPE = 'mmgroupnet.Packed'
BINARIZED_TYPE = 'mmgroupnet.Binarized'


def _kind_of_model(cfg: Config) -> object:
    if not isinstance(cfg.get('model'), Mapping):
        raise UserError('the config has no model=dict(...): give a whole config, not a part of one')
    return cfg.model.get('type')


def is_packed_config(cfg: Config) -> bool:
    """Whether the config's model is packed, ``dict(type='mmgroupnet.Packed', model=...)``.

    Raises:
        UserError: If the config has no model.
    """
    return _kind_of_model(cfg) == PACKED_TYPE


def is_binarized_config(cfg: Config) -> bool:
    """Whether the config's model is ``dict(type='mmgroupnet.Binarized', ...)``.

    Raises:
        UserError: If the config has no model.
    """
    return _kind_of_model(cfg) == BINARIZED_TYPE


def packed_model(model: Mapping) -> ConfigDict:
    """The config of a model as a packed one."""
    return ConfigDict(type=PACKED_TYPE, backbone={}, model=model)


def binarized_model(model: Mapping, policy: list[dict]) -> ConfigDict:
    """The config of a model as a binarised one."""
    return ConfigDict(type=BINARIZED_TYPE, backbone={}, policy=policy, model=model)


def check_outer_backbone(backbone: Mapping | None) -> None:
    """Checks the ``backbone`` beside a wrapped model, which exists only because mmdet's ``init_detector`` removes the
    ``init_cfg`` of this key.

    Raises:
        UserError: If it holds options, which would be lost.
    """
    if backbone and dict(backbone) != dict(init_cfg=None):
        raise UserError(f'backbone={dict(backbone)}: the options of a backbone belong into model.backbone, inside')


def with_data_preprocessor(model: Mapping, data_preprocessor: Mapping | None) -> dict:
    """The config of a model, with the data preprocessor from beside it if the model has none, as mmengine's Runner
    inserts it."""
    whole = copy.deepcopy(dict(model))  # Detectors write into the configs of their parts.
    if data_preprocessor is not None:
        whole.setdefault('data_preprocessor', data_preprocessor)
    return whole


def data_preprocessor_of(cfg: Config, key: str) -> Mapping:
    """The data preprocessor with a certain key: beside the model, in it, or in the model that it wraps."""
    model = cfg.get('model') or {}
    for place in (cfg, model, model.get('model')):
        preprocessor = (place.get('data_preprocessor') if isinstance(place, Mapping | Config) else None) or {}
        if key in preprocessor:
            return preprocessor
    return {}


def type_name(entry: object) -> str:
    """The class name of an entry of a config, without scope or module.

    Args:
        entry: A dict with a ``type``, which is a name or a class, or a built object.

    Returns:
        The name; '' for a dict without a ``type``.
    """
    kind = entry.get('type', '') if isinstance(entry, Mapping) else type(entry)
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
