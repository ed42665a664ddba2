"""What is refused in a config before anything is built from it."""

import logging
import re

import pytest
from mmdet.models import FCOS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper

from mmgroupnet.engine import configs
from mmgroupnet.engine.configs import accepted_arguments, check_arguments, load_config, resolve_type
from mmgroupnet.engine.hooks import BinaryStatisticsHook
from mmgroupnet.errors import UserError, nearest
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


def test_nearest():
    assert nearest('dept', ['depth', 'width']) == " (did you mean 'depth'?)"
    assert nearest('colour', ['depth', 'width']) == ''


@pytest.mark.parametrize(
    ('name', 'scope', 'expected'),
    [
        ('FCOS', 'mmdet', FCOS),
        ('mmgroupnet.BinaryStatisticsHook', 'mmdet', BinaryStatisticsHook),
        ('OptimWrapper', 'mmdet', OptimWrapper),
        ('FCOS', None, None),
        ('mmdet.FCOS', None, FCOS),
        ('nothing', 'my_project', None),
        (FCOS, None, FCOS),
    ],
)
def test_types_are_found_without_noise(name, scope, expected, monkeypatch):
    """mmengine warns of kinds of registries that a scope lacks; of that only it knows."""
    said = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda logger, record: said.append(record))
    assert resolve_type(name, scope) is expected
    assert [record.getMessage() for record in said if record.levelno >= logging.WARNING] == []


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
        ('model.bakbone', {}, "model: FCOS takes no argument 'bakbone' (did you mean 'backbone'?)"),
        ('model.extra', {}, None),  # like nothing that it takes
        ('model.bbox_head.stacked_conv', 2, None),  # handed on, nobody knows where to
        ('model.bbox_head.loss_cls', dict(type='CrossEntropyLoss', bg_cls_weight=0.1), None),  # for the head
        ('train_dataloader.dataset.anns_file', 'train.json', None),  # no part of the model
    ],
)
def test_arguments_of_other_parts_are_warned_of_where_they_look_misspelt(cfg, path, value, message, monkeypatch):
    said = []
    monkeypatch.setattr(configs, 'print_log', lambda text, logger, level: said.append((text, level)))
    cfg.merge_from_dict({path: value})
    check_arguments(cfg)
    assert said == ([] if message is None else [(message, logging.WARNING)])


def test_a_hook_may_have_a_priority(cfg):
    cfg.custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook', priority='LOW')]
    check_arguments(cfg)


def test_a_missing_config(tmp_path):
    (tmp_path / 'retinanet_coco.py').write_text('a = 1')
    with pytest.raises(UserError, match=r'missing/fcos\.py does not exist$'):
        load_config(str(tmp_path / 'missing/fcos.py'))
    with pytest.raises(UserError, match=r"retinanet_cocoo\.py does not exist \(did you mean '.*/retinanet_coco\.py'"):
        load_config(str(tmp_path / 'retinanet_cocoo.py'))


def test_a_missing_base(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = './nothing.py'")
    with pytest.raises(UserError, match=r'^config .*/mine\.py: .*nothing\.py'):
        load_config(str(tmp_path / 'mine.py'))


def test_a_config_of_an_installed_library():
    cfg = load_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    assert isinstance(cfg, Config)
    assert cfg.model.type == 'FCOS'
    with pytest.raises(UserError, match=r'config mmdet::fcos/nothing\.py: no installed OpenMMLab library has it'):
        load_config('mmdet::fcos/nothing.py')
    with pytest.raises(UserError, match='config nothing::fcos/fcos.py: nothing is not installed'):
        load_config('nothing::fcos/fcos.py')
