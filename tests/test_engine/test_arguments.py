"""Arguments in a config that its parts do not take, found before anything is built."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from mmgroupnet.engine import arguments
from mmgroupnet.engine.arguments import accepted_arguments, check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run


class Plain:
    def __init__(self, depth, width=1):
        pass


class HandsOn(Plain):
    def __init__(self, height, **kwargs):
        super().__init__(**kwargs)


class HandsOnAll(HandsOn):
    def __init__(self, *args, colour=None, **kwargs):
        super().__init__(*args, **kwargs)


def test_arguments_are_followed_along_the_bases():
    assert accepted_arguments(Plain) == {'depth', 'width'}
    assert accepted_arguments(HandsOn) == {'height', 'depth', 'width'}
    assert accepted_arguments(HandsOnAll) == {'colour', 'height', 'depth', 'width'}


def test_arguments_of_functions():
    assert accepted_arguments(lambda a, b=1: None) == {'a', 'b'}
    assert accepted_arguments(lambda a, **kwargs: None) is None


@pytest.fixture
def cfg(tmp_path):
    return load_tiny_run(tmp_path)


def test_a_good_config_passes(cfg):
    check_arguments(cfg)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        (
            'model.backbone.num_base',
            2,
            "model.backbone: GroupNetResNet takes no argument 'num_base' (did you mean 'num_bases'?)",
        ),
        ('model.neck.num_out', 2, "model.neck: BinaryFPN takes no argument 'num_out' (did you mean 'num_outs'?)"),
        ('model.neck.type', 'mmgroupnet.BinaryFPM', "'mmgroupnet.BinaryFPM' is not registered (did you mean"),
        (
            'model.backbone.binary_cfg',
            dict(activation=dict(type='mmgroupnet.PolinomialSign')),
            "model.backbone.binary_cfg.activation.type='mmgroupnet.PolinomialSign' is not registered (did you mean "
            "'mmgroupnet.PolynomialSign'?)",
        ),
        (
            'model.backbone.binary_cfg',
            dict(weights=dict(type='mmgroupnet.ChannelScaleWeight')),
            "model.backbone.binary_cfg: BinaryConv2d takes no argument 'weights' (did you mean 'weight'?)",
        ),
        (
            'custom_hooks',
            [dict(type='mmgroupnet.BinaryStatisticsHook', intervals=2)],
            "custom_hooks.0: BinaryStatisticsHook takes no argument 'intervals' (did you mean 'interval'?)",
        ),
    ],
)
def test_arguments_that_our_parts_do_not_take(cfg, path, value, message):
    cfg.merge_from_dict({path: value})
    with pytest.raises(UserError, match=re.escape(message)):
        check_arguments(cfg)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('model.backbone.num_bases', 4.0, 'model.backbone.num_bases=4.0: GroupNetResNet takes int'),
        ('model.backbone.num_bases', '4', "model.backbone.num_bases='4': GroupNetResNet takes int"),
        ('model.backbone.out_indices', 3, 'out_indices=3: GroupNetResNet takes Sequence[int] | None'),
        ('model.backbone.strides', 2, 'strides=2: GroupNetResNet takes Sequence[int] | None'),
        ('model.backbone.strides', (1, 2.0, 2, 2), 'strides=(1, 2.0, 2, 2): GroupNetResNet takes'),
        ('model.backbone.norm_cfg', 'BN', "norm_cfg='BN': GroupNetResNet takes dict | None"),
        ('model.backbone.frozen_stages', None, 'frozen_stages=None: GroupNetResNet takes int'),
        ('model.neck.num_bases', None, 'model.neck.num_bases=None: BinaryFPN takes int'),
    ],
)
def test_values_that_our_parts_do_not_take(cfg, path, value, message):
    cfg.merge_from_dict({path: value})
    with pytest.raises(UserError, match=re.escape(message)):
        check_arguments(cfg)


@pytest.mark.parametrize(
    ('value', 'hint', 'expected'),
    [
        (1, int, True),
        (1, float, True),
        (1.5, int, False),
        (np.int64(1), int, True),
        (np.float32(1.5), float, True),
        (1, bool, True),
        (2, bool, False),
        (True, bool, True),
        (Path('a'), str, True),
        (range(2), Sequence[int], True),
        (None, int | None, True),
        (None, int, False),
        ('ab', Sequence[str], False),
        (['a', 'b'], Sequence[str], True),
        (('a', 1), list[str], False),
        ([1, 'bpac', (1, 2)], Sequence[int | str | Sequence[int]], True),
        ([1, 2.5], Sequence[int | str | Sequence[int]], False),
        ([1, 2], tuple[int, int], True),
        (3, tuple[int, int], False),
        (dict(a=1), Mapping[str, int], True),
        (dict(a=[]), Mapping[str, int], False),
        ([1], Mapping[str, int], False),
        ([], list, True),
        (object(), Any, True),  # what no config writes is left to the part
        (1, Callable, True),
    ],
)
def test_types_of_values(value, hint, expected):
    assert arguments._fits(value, hint) == expected


def test_an_argument_that_is_needed(cfg):
    del cfg.model.backbone.num_bases
    with pytest.raises(UserError, match='^model.backbone: GroupNetResNet needs num_bases$'):
        check_arguments(cfg)


def test_a_part_of_a_part_in_a_variable(cfg):
    cfg.my_backbone = dict(type='mmgroupnet.GroupNetResNet', num_bases=2)
    cfg.my_rule = dict(become='layerwise', num_bases=2, binary_cfg=dict(learned_scales=True))
    check_arguments(cfg)


@pytest.mark.parametrize('name', ['AugmentedClassifier', 'AugmentedSegmentor', 'AugmentedDetector'])
def test_the_runner_gives_a_model_of_augmented_tests_its_module(cfg, name):
    cfg.tta_model = dict(type=f'mmgroupnet.{name}')
    check_arguments(cfg)


def test_a_type_without_its_scope(cfg):
    cfg.model.backbone.type = 'GroupNetResNet'
    message = "model.backbone.type='GroupNetResNet' is not registered (did you mean 'mmgroupnet.GroupNetResNet'?)"
    with pytest.raises(UserError, match=re.escape(message)):
        check_arguments(cfg)


def test_the_checkpoint_of_a_float_backbone():
    """Base configs of mmseg have one, and the segmentor would hand it to the backbone."""
    cfg = load_config('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert cfg.model.pretrained
    cfg.model.backbone = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2)
    message = f"model.pretrained='{cfg.model.pretrained}' is meant for a float backbone, set model.pretrained=None"
    with pytest.raises(UserError, match=re.escape(message)):
        check_arguments(cfg)
    cfg.model.pretrained = None
    check_arguments(cfg)
    # mmpretrain takes it as the checkpoint of the whole classifier.
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    cfg.model.pretrained = 'whole.pth'
    cfg.model.backbone = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2)
    check_arguments(cfg)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('model.bakbone', {}, "model: FCOS takes no argument 'bakbone' (did you mean 'backbone'?)"),
        ('model.extra', {}, None),  # not similar to any argument
        ('model.bbox_head.stacked_conv', 2, None),  # passed on by **kwargs, so the arguments are not known
        ('model.bbox_head.loss_cls', dict(type='CrossEntropyLoss', bg_cls_weight=0.1), None),  # read by the head
        ('train_dataloader.dataset.anns_file', 'train.json', None),  # not in the model
    ],
)
def test_arguments_of_other_parts_are_warned_of_where_they_look_misspelt(cfg, path, value, message, monkeypatch):
    said = []
    monkeypatch.setattr(arguments, 'print_log', lambda text, logger, level: said.append((text, level)))
    cfg.merge_from_dict({path: value})
    check_arguments(cfg)
    assert said == ([] if message is None else [(message, logging.WARNING)])


def test_a_hook_may_have_a_priority(cfg):
    cfg.custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook', priority='LOW')]
    check_arguments(cfg)


def test_the_options_of_a_policy_are_not_those_of_one_conv():
    rule = dict(become='layerwise', num_bases=2, binary_cfg=dict(learned_scales=True))
    check_arguments(Config(dict(model=dict(type='mmgroupnet.Binarized', policy=[rule], model=dict(type='ResNet')))))
