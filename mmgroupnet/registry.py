"""Registries of mmgroupnet, each a child of mmengine's.

Types are written ``mmgroupnet.X`` in configs of any OpenMMLab library: mmengine then imports this module, and the first
look-up imports the locations below. This module itself imports no part of a model.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from mmgroupnet.checkpoints.safe import register_loaders

__all__ = ['MODELS', 'HOOKS', 'DATASETS', 'WEIGHT_INITIALIZERS']

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmgroupnet',
    locations=[
        'mmgroupnet.quantizers',
        'mmgroupnet.layers',
        'mmgroupnet.models',
        'mmgroupnet.deploy',
        'mmgroupnet.converters',
        'mmgroupnet.engine.onnx_model',
        'mmgroupnet.engine.stored_predictions',
    ],
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmgroupnet', locations=['mmgroupnet.engine.hooks'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmgroupnet', locations=['mmgroupnet.datasets'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, scope='mmgroupnet', locations=['mmgroupnet.converters']
)

# Every tool or inferencer that builds a config with one of our parts imports this module, and may load a checkpoint
# next. If mmengine's own Runner has written it, mmengine alone cannot read it in torch's safe mode.
register_loaders()
