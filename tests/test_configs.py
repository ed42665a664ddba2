from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmgroupnet.layers import BinaryConv2d
from tests.liveness import assert_alive, binary_layer_calls, estimate_statistics, real_pictures

FOLDER = Path(__file__).parents[1] / 'configs'
# Those of configs/binarized have tests of their own, test_binarized_configs.py.
CONFIGS = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob('*.py')
    if not {'_base_', 'binarized'} & set(path.relative_to(FOLDER).parts)
)
FLOAT_TWINS = {'demo/fcos_float_digits.py', 'detection/fcos_r18_bccd.py'}

# Small, for the sake of time; the last of the five levels of the COCO configs still has 1x2 positions.
HEIGHT, WIDTH = 96, 160


@cache
def load(name: str) -> Config:
    return Config.fromfile(FOLDER / name)


@pytest.fixture(autouse=True, scope='module')
def scope_of_the_configs():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def test_the_flagship_has_its_path():
    assert 'fcos_groupnet_r50_coco.py' in CONFIGS


def test_file_names_are_unique():
    names = Counter(path.name for path in FOLDER.rglob('*.py'))
    assert not [name for name, number in names.items() if number > 1]


@pytest.mark.parametrize('name', CONFIGS)
def test_data_and_classes(name):
    cfg = load(name)
    assert cfg.default_scope == 'mmdet'
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        Compose(dataset.pipeline)
        # What the config says, or else what the dataset brings with it, as in training.
        metainfo = DATASETS.get(dataset.type)._load_metainfo(dataset.get('metainfo'))
        assert len(metainfo['classes']) == cfg.model.bbox_head.num_classes
    assert cfg.auto_scale_lr.base_batch_size > 0 and not cfg.auto_scale_lr.enable


@pytest.mark.parametrize('name', CONFIGS)
def test_every_binary_layer_is_alive(name):
    """The config builds, its optimizer too; then, on two real pictures, every binary layer (at every pyramid level)
    tells the two apart and sees neither nearly all +1 nor nearly all -1."""
    cfg = load(name)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    trained = sum(parameter.numel() for group in optim_wrapper.optimizer.param_groups for parameter in group['params'])
    assert trained == sum(parameter.numel() for parameter in model.parameters())

    images = model.data_preprocessor(dict(inputs=list(real_pictures(HEIGHT, WIDTH)), data_samples=None))['inputs']
    estimate_statistics(model, lambda: model(images.flip(3)))
    if name in FLOAT_TWINS:
        assert not any(isinstance(module, BinaryConv2d) for module in model.modules())
    else:
        assert_alive(binary_layer_calls(model, lambda: model(images)))
