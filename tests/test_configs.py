import copy
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torchvision.models import get_model

from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import read_config_file, resolve_type
from mmgroupnet.layers import BinaryConv2d
from tests.liveness import assert_alive, binary_layer_calls, estimate_statistics, real_pictures

FOLDER = Path(__file__).parents[1] / 'configs'
# The configs in configs/binarized are tested in test_binarized_configs.py.
CONFIGS = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob('*.py')
    if not {'_base_', 'binarized'} & set(path.relative_to(FOLDER).parts)
)
FLOAT_TWINS = {
    'demo/fcos_float_digits.py',
    'detection/fcos_r18_bccd.py',
    'segmentation/fcn-32s_r18_camvid-240x180.py',
    'classification/r20_cifar10.py',
}
FLAGSHIP = 'fcos_groupnet_r50_coco.py'
LARGE_DATA = ('coco.py', 'voc12aug', 'cityscapes')  # their networks start from a classifier
SCOPES = dict(demo='mmdet', detection='mmdet', segmentation='mmseg', classification='mmpretrain')


# Configs that differ from one with ResNet-18 only in depth. The flagship config is tested in place of them.
DEEPER = [
    name
    for name in CONFIGS
    if name != FLAGSHIP and any(name.replace(depth, '_r18_') in set(CONFIGS) - {name} for depth in ('_r34_', '_r50_'))
]
# Small to save time; the last of the five levels of the COCO configs still has 1x2 positions.
HEIGHT, WIDTH = 96, 160


@cache
def load(name: str) -> Config:
    return read_config_file(FOLDER / name)


@pytest.fixture
def cfg(name: str) -> Iterator[Config]:
    """The config of a test; its default scope is active during the test."""
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield cfg


def innermost(dataset: Config) -> list[Config]:
    """The datasets inside wrappers."""
    return [inner for part in dataset.datasets for inner in innermost(part)] if 'datasets' in dataset else [dataset]


def numbers_of_classes(model: Config) -> set[int]:
    """The values of ``num_classes`` in the heads of a model."""
    heads = [model.get(name) for name in ('bbox_head', 'decode_head', 'auxiliary_head', 'head')]
    return {head.num_classes for head in heads if head}


def with_few_bases(cfg: Config) -> Config:
    """The config of a model, with two bases in place of more than three to save time."""
    cfg = copy.deepcopy(cfg)
    for part in cfg.values():
        if isinstance(part, dict) and part.get('num_bases', 0) > 3:
            part['num_bases'] = 2
    return cfg


def save_float_resnet(depth: int, path: Path) -> None:
    """Saves a float ResNet with random weights, under torchvision's names or, for CIFAR-10, mmpretrain's."""
    if depth == 20:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            network = MODELS.build(load('classification/r20_cifar10.py').model)
    else:
        network = get_model(f'resnet{depth}', weights=None)
    torch.save(network.state_dict(), path)


def test_the_flagship_has_its_path():
    assert FLAGSHIP in CONFIGS


def test_file_names_are_unique():
    names = Counter(path.name for path in FOLDER.rglob('*.py'))
    assert not [name for name, number in names.items() if number > 1]


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.rpartition('_')[2].split('-')[0] in LARGE_DATA])
def test_a_classifier_of_ours_fits_as_start(name, cfg):
    assert 'backbone_checkpoint' in cfg
    backbone = cfg.model.backbone
    kind = '' if backbone.get('binary_downsample', True) else '_float-downsample'
    classifier = load(f'classification/groupnet_r{backbone.depth}_k5{kind}_stage-b_8xb32-40e_in1k.py')
    with torch.device('meta'):
        needed, given = (MODELS.build(part).state_dict() for part in (backbone, classifier.model.backbone))
    assert {key: value.shape for key, value in needed.items()} == {key: value.shape for key, value in given.items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_data_and_classes(name, cfg):
    scope = 'mmseg' if name.endswith('-seg.py') else SCOPES.get(name.split('/')[0], 'mmdet')
    assert cfg.default_scope == scope
    check_arguments(cfg)
    for split in ('train', 'val', 'test'):
        for dataset in innermost(cfg[f'{split}_dataloader'].dataset):
            Compose(dataset.pipeline)
            # The metainfo of the config, or else that of the dataset's class, as in training.
            metainfo = resolve_type(dataset.type, scope)._load_metainfo(dataset.get('metainfo'))
            assert {len(metainfo['classes'])} == numbers_of_classes(cfg.model)
    assert cfg.auto_scale_lr.base_batch_size > 0 and not cfg.auto_scale_lr.enable


def assert_everything_is_trained(model: nn.Module, cfg: Config) -> None:
    """Checks that the optimizer can be built and has every parameter."""
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    trained = sum(parameter.numel() for group in groups for parameter in group['params'])
    assert trained == sum(parameter.numel() for parameter in model.parameters())


def run(model: nn.Module, cfg: Config, images: Tensor) -> None:
    """Sends pictures through all parts of a model."""
    if cfg.default_scope != 'mmseg':
        model(images)
        return
    features = model.extract_feat(images)
    for head in (model.decode_head, getattr(model, 'auxiliary_head', None)):
        if head is not None:
            head(features)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] if name in DEEPER else []) for name in CONFIGS]
)
def test_every_binary_layer_is_alive(name, cfg, tmp_path):
    """The model and its optimizer can be built. On two real pictures, the outputs of every binary layer (at every
    pyramid level) differ between the two, and its signs are neither nearly all +1 nor nearly all -1."""
    torch.manual_seed(0)
    model_cfg = with_few_bases(cfg.model)
    if 'data_preprocessor' in cfg:  # In mmpretrain's configs; the Runner moves it into the model.
        model_cfg.data_preprocessor = cfg.data_preprocessor
    if 'init_cfg' in model_cfg.backbone:
        save_float_resnet(model_cfg.backbone.depth, tmp_path / 'float.pth')
        model_cfg.backbone.init_cfg.checkpoint = str(tmp_path / 'float.pth')
    model = MODELS.build(model_cfg)
    model.init_weights()
    assert_everything_is_trained(model, cfg)

    preprocessor = model.data_preprocessor
    if cfg.default_scope == 'mmseg':
        preprocessor.size = (HEIGHT, WIDTH)
    images = preprocessor(dict(inputs=list(real_pictures(HEIGHT, WIDTH)), data_samples=None))['inputs']
    estimate_statistics(model, lambda: run(model, cfg, images.flip(3)))
    if name in FLOAT_TWINS:
        assert not any(isinstance(module, BinaryConv2d) for module in model.modules())
    else:
        assert_alive(binary_layer_calls(model, lambda: run(model, cfg, images)))


@pytest.mark.parametrize('name', DEEPER)
def test_parts_of_deeper_networks_fit_together(name, cfg):
    """Only shapes are checked: the channels of the parts match, and the optimizer has all parameters."""
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(with_few_bases(cfg.model))
        assert_everything_is_trained(model, cfg)
        run(model.eval(), cfg, torch.empty(2, 3, HEIGHT, WIDTH))
