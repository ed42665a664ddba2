"""What is refused in a config before anything is built from it."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgroupnet.engine.configs import accepted_arguments, check_arguments, check_overrides, load_config
from mmgroupnet.errors import UserError, nearest
from tests.tiny_run import load_tiny_run

CONFIGS = Path(__file__).parents[2] / 'configs'


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
        ('model.bbox_head.stacked_conv', 2, None),
        ('model.bakbone', {}, "model: FCOS takes no argument 'bakbone' (did you mean 'backbone'?)"),
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
def test_arguments_that_a_part_does_not_take(cfg, path, value, message):
    cfg.merge_from_dict({path: value})
    if message is None:  # A stock part that hands on its arguments: Python's own error will name the key.
        check_arguments(cfg)
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            check_arguments(cfg)


def test_a_hook_may_have_a_priority(cfg):
    cfg.custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook', priority='LOW')]
    check_arguments(cfg)


@pytest.mark.parametrize(
    'path',
    [
        'model.backbone.depth',
        'model.backbone.avg_down',  # not in the config, but its parent is
        'model.backbone.norm_cfg.type',  # an argument that the config leaves at its default
        'optim_wrapper.clip_grad.max_norm',
        'train_dataloader.dataset.pipeline.0.type',
        'load_from',
        'tta_model.type',
        'find_unused_parameters',
    ],
)
def test_overrides_of_what_exists(cfg, path):
    check_overrides(cfg, {path: 1})


@pytest.mark.parametrize(
    'path', ['randomness.seed', 'optim_wrapper.clip_grad.max_norm', 'optim_wrapper.paramwise_cfg.norm_decay_mult']
)
@pytest.mark.parametrize(
    'name',
    [
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        str(CONFIGS / 'classification' / 'groupnet_r20_k3_scratch_cifar10.py'),  # its optim_wrapper has no type
    ],
)
def test_overrides_of_what_a_config_leaves_to_the_runner(name, path):
    check_overrides(load_config(name), {path: 1})


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        (
            'float_checkpoint',
            'float_checkpoint is a variable of the config file, whose value went where it is used when the file was '
            'read. Change it there: model.backbone.init_cfg.checkpoint, model.head.init_cfg.checkpoint, '
            'custom_hooks.1.checkpoint',
        ),
        ('whole_image_pipeline.0.padding', 'whole_image_pipeline is a variable of the config file'),
        ('resum', "the config has no key 'resum' (did you mean 'resume'?)"),
        ('randomnes.seed', "the config has no key 'randomnes' (did you mean 'randomness'?)"),
    ],
)
def test_overrides_that_nobody_would_read(path, message):
    cfg = load_config(str(CONFIGS / 'classification' / 'groupnet_r20_k3_distilled_cifar10.py'))
    with pytest.raises(UserError, match=re.escape(f'--cfg-options {path}: {message}')):
        check_overrides(cfg, {path: 1})


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('model.bakbone.depth', "model has no key 'bakbone' (did you mean 'backbone'?). Its keys: type, data_pre"),
        ('modle.backbone.depth', "the config has no key 'modle' (did you mean 'model'?)"),
        ('model.backbone.depth.x', 'model.backbone.depth is 18, which has no keys'),
        ('param_scheduler.1.end', "param_scheduler is a list of 1 entries, '1' is no index of it"),
        ('param_scheduler.end', "param_scheduler is a list of 1 entries, 'end' is no index of it"),
    ],
)
def test_overrides_of_what_does_not_exist(cfg, path, message):
    with pytest.raises(UserError, match=re.escape(f'--cfg-options {path}: {message}')):
        check_overrides(cfg, {'randomness.seed': 1, path: 18})


def test_a_missing_config(tmp_path):
    (tmp_path / 'retinanet_coco.py').write_text('a = 1')
    with pytest.raises(UserError, match=r'missing/fcos\.py does not exist$'):
        load_config(str(tmp_path / 'missing/fcos.py'))
    with pytest.raises(UserError, match=r"retinanet_cocoo\.py does not exist \(did you mean '.*/retinanet_coco\.py'"):
        load_config(str(tmp_path / 'retinanet_cocoo.py'))


def test_a_config_of_an_installed_library():
    cfg = load_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    assert isinstance(cfg, Config)
    assert cfg.model.type == 'FCOS'
    with pytest.raises(UserError, match=r'config mmdet::fcos/nothing\.py: no installed OpenMMLab library has it'):
        load_config('mmdet::fcos/nothing.py')
    with pytest.raises(UserError, match='config nothing::fcos/fcos.py: nothing is not installed'):
        load_config('nothing::fcos/fcos.py')
