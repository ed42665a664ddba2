"""Policies, and the configs that use one to binarise a stock model."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from benchmarks.stock_configs import Run
from mmgroupnet.checkpoints.pretrained import leave_out_pretrained
from mmgroupnet.converters.policy import parse_policy
from mmgroupnet.engine.binarize_option import binarize_config, load_policy
from mmgroupnet.engine.configs import check_arguments, load_config, read_config_file
from mmgroupnet.engine.models import build_model
from mmgroupnet.layers import BinaryConv2d, GroupwiseChain, RealValuedSkip

FOLDER = Path(__file__).parents[1] / 'configs'
POLICIES = sorted((FOLDER / '_base_/policies').glob('*.py'))
CONFIGS = sorted(path for path in (FOLDER / 'binarized').glob('*.py') if 'groupnet' in path.name)
FLOAT_TWIN = FOLDER / 'binarized/retinanet_r18_half_bccd.py'


def narrow(path: Path) -> Config:
    """A config with a thin backbone and two bases, without pretrained weights."""
    cfg = read_config_file(path)
    inner = cfg.model.model
    expansion = 1 if inner.backbone.depth == 18 else 4
    widths = [16 * 2**stage * expansion for stage in range(4)]
    inner.backbone.base_channels = 16
    if cfg.default_scope == 'mmdet':
        inner.neck.in_channels = widths
    else:
        inner.decode_head.in_channels, inner.auxiliary_head.in_channels = widths[3], widths[2]
        if 'c1_in_channels' in inner.decode_head:
            inner.decode_head.c1_in_channels = widths[0]
    for rule in cfg.model.policy:
        if 'num_bases' in rule:
            rule.num_bases = 2
    leave_out_pretrained(cfg)
    return cfg


@pytest.mark.parametrize('path', POLICIES, ids=lambda path: path.stem)
def test_first_and_last_layers_are_on_top(path):
    rules = parse_policy(load_policy(str(path)))
    becomes = [rule.become for rule in rules]
    keeps = becomes[: next(index for index, become in enumerate(becomes) if become != 'keep')]
    first = next(rule for rule in rules if 'backbone.conv1' in rule.names)
    assert first in rules[: len(keeps)]
    if any(rule.become == 'layerwise' and rule.names == ('*',) for rule in rules):  # heads become binary, too
        assert next(rule for rule in rules if '*.conv_seg' in rule.names) in rules[: len(keeps)]


@pytest.mark.parametrize(
    ('policy', 'binary_parts'),
    [
        ('groupnet_k4', ['backbone', 'neck', 'bbox_head']),
        ('groupnet_k4_backbone', ['backbone']),
        ('groupnet_k4_backbone-neck', ['backbone', 'neck']),
        ('groupnet_k4_float-downsample', ['backbone', 'neck', 'bbox_head']),
    ],
)
def test_parts_of_a_policy(policy, binary_parts):
    cfg = read_config_file(FLOAT_TWIN)
    binarize_config(cfg, load_policy(str(FOLDER / f'_base_/policies/{policy}.py')))
    model = build_model(cfg)
    found = [
        name
        for name, part in model.named_children()
        if any(isinstance(module, BinaryConv2d) for module in part.modules())
    ]
    assert found == binary_parts
    chains = [module for module in model.modules() if isinstance(module, GroupwiseChain)]
    assert [len(chain.blocks) for chain in chains] == [2] * 4
    downsample = chains[1].blocks[0].branches[0].downsample[0]
    assert isinstance(downsample, BinaryConv2d) == (policy != 'groupnet_k4_float-downsample')
    assert isinstance(model.backbone.conv1, torch.nn.Conv2d)
    assert all(type(lateral.conv) is torch.nn.Conv2d for lateral in model.neck.lateral_convs)
    # Backbone: four branches with two blocks per stage; in three of the four stages the first conv changes the shape,
    # so it has no skip. Neck: three output convs; the fourth halves the size. Head: two towers of two convs.
    expected = dict(backbone=4 * (4 + 3 * 3), neck=3, bbox_head=4)
    for part, number in expected.items():
        skips = [module for module in model.get_submodule(part).modules() if isinstance(module, RealValuedSkip)]
        assert len(skips) == (number if part in binary_parts else 0)


def test_every_kind_of_detector_and_segmentor_is_there():
    kinds = {path.stem.split('_groupnet_')[0] for path in CONFIGS}
    assert kinds == {'retinanet', 'faster-rcnn', 'mask-rcnn', 'atss', 'deeplabv3plus', 'pspnet'}
    assert len(CONFIGS) == 2 * len(kinds)


def without_scope(node: object) -> object:
    """A config without the key that mmengine adds to configs from other libraries."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    return [without_scope(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_is_the_stock_config_and_the_default_policy(path):
    cfg = read_config_file(path)
    check_arguments(cfg)
    assert cfg.model.to_dict()['policy'] == load_policy(str(FOLDER / '_base_/policies/groupnet_k4.py'))
    text = (path.with_name(path.name.replace('r18', 'r50')) if cfg.default_scope == 'mmdet' else path).read_text()
    stock = load_config(next(part for part in text.split("'") if '::' in part))
    inner = cfg.model.model
    assert inner.type == stock.model.type
    assert inner.backbone.depth == (18 if 'r18' in path.stem else 50)
    for part in ('train_dataloader', 'optim_wrapper'):
        assert without_scope(cfg[part].to_dict()) == stock[part].to_dict()


@pytest.mark.parametrize(
    'path', [pytest.param(path, marks=[pytest.mark.slow] * ('r50' in path.stem), id=path.stem) for path in CONFIGS]
)
def test_every_binary_layer_is_alive(path):
    cfg = narrow(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        lowest, highest = Run(cfg).check_alive()
    assert 0.02 <= lowest <= highest <= 0.98
