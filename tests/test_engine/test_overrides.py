"""``--cfg-options``: allows the same overrides as mmengine, except those that would have no effect."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgroupnet.engine import overrides
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def cfg(tmp_path):
    return load_tiny_run(tmp_path)


@pytest.fixture
def said(monkeypatch):
    """The logged warnings."""
    said = []
    monkeypatch.setattr(overrides, 'print_log', lambda text, logger, level: said.append(text))
    return said


@pytest.mark.parametrize(
    'path',
    [
        'model.backbone.depth',
        'model.backbone.avg_down',  # not in the config, but an argument of the backbone in it
        'model.backbone.norm_cfg.type',  # norm_cfg is not in the config either
        'model.init_cfg.checkpoint',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult',
        'default_hooks.early_stop.type',
        'train_dataloader.dataset.pipeline.0.type',
        'load_from',
        'tta_model.type',
        'find_unused_parameters',
        'strategy.type',
    ],
)
def test_what_mmengine_takes(cfg, said, path):
    assert check_overrides(cfg, {path: 1}) == {path: 1}
    assert said == []


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',  # its custom_keys have no 'backbone'
        str(CONFIGS / 'classification' / 'groupnet_r20_k3_scratch_cifar10.py'),  # its optim_wrapper has no type
    ],
)
def test_the_documented_overrides(name, said):
    cfg = load_config(name)
    options = {
        'randomness.seed': 1,
        'optim_wrapper.clip_grad.max_norm': 1,
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 0.1,
        'default_hooks.early_stop.type': 'EarlyStoppingHook',
        'default_hooks.early_stop.monitor': 'loss',
    }
    cfg.merge_from_dict(check_overrides(cfg, options))
    check_arguments(cfg)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert cfg.default_hooks.early_stop == dict(type='EarlyStoppingHook', monitor='loss')
    assert said == []


def test_indices_count_from_the_end(cfg):
    options = {'train_dataloader.dataset.pipeline.-2.prob': 0.25, 'param_scheduler.-1.end': 9}
    cfg.merge_from_dict(check_overrides(cfg, options))
    assert cfg.train_dataloader.dataset.pipeline[2].prob == 0.25
    assert cfg.param_scheduler[0].end == 9


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('model.backbone.depth.x', 'model.backbone.depth is 18, which has no keys'),
        ('model.backbone.strides.0', 'model.backbone.strides is (1, 2, 2), which has no keys'),
        ('param_scheduler.1.end', "param_scheduler is a list of 1 entries, '1' is no index of it"),
        ('param_scheduler.-2.end', "param_scheduler is a list of 1 entries, '-2' is no index of it"),
        ('param_scheduler.end', "param_scheduler is a list of 1 entries, 'end' is no index of it"),
    ],
)
def test_what_mmengine_cannot_merge(cfg, path, message):
    with pytest.raises(UserError, match=re.escape(f'--cfg-options {path}: {message}')):
        check_overrides(cfg, {'randomness.seed': 1, path: 18})


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('model.bakbone.depth', "model has no key 'bakbone' (did you mean 'backbone'?)"),
        ('model.test_cfg.scor_thr', "model.test_cfg has no key 'scor_thr' (did you mean 'score_thr'?)"),
        ('optim_wrapper.optimzer.lr', "optim_wrapper has no key 'optimzer' (did you mean 'optimizer'?)"),
        ('resum', "neither the config nor mmengine has a setting 'resum' (did you mean 'resume'?). Only code that"),
        ('randomnes.seed', "neither the config nor mmengine has a setting 'randomnes' (did you mean 'randomness'?)"),
        ('colour.rate', "neither the config nor mmengine has a setting 'colour'. Only code that reads it"),
        ('my_rate', 'my_rate is no setting of mmengine. Only code that reads it'),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(cfg, said, path, message):
    cfg.my_rate = 3
    cfg.merge_from_dict(check_overrides(cfg, {path: 18}))
    assert len(said) == 1 and said[0].startswith(f'--cfg-options {path}: {message}')
    node = cfg
    for key in path.split('.'):
        node = node[key]
    assert node == 18  # it is set nevertheless, since a user's hook may read it


def test_misspelt_arguments_of_our_parts_are_errors(cfg, said):
    cfg.merge_from_dict(check_overrides(cfg, {'model.backbone.binary_cg.activation.type': 'mmgroupnet.ShiftedSign'}))
    with pytest.raises(UserError, match=r"takes no argument 'binary_cg' \(did you mean 'binary_cfg'\?\)"):
        check_arguments(cfg)


@pytest.mark.parametrize(
    ('path', 'places'),
    [
        ('float_checkpoint', 'model.backbone.init_cfg.checkpoint, custom_hooks.1.checkpoint'),
        ('whole_image_pipeline.0.padding', 'custom_hooks.2.schedule.0.train_pipeline'),
    ],
)
def test_variables_of_the_file_would_silently_not_be_read(path, places):
    cfg = load_config(str(CONFIGS / 'classification' / 'groupnet_r20_k3_distilled_cifar10.py'))
    name = path.split('.')[0]
    message = f'--cfg-options {path}: {name} is a Python variable of the config file, not a setting. Override it where '
    with pytest.raises(UserError, match=re.escape(f'{message}it is used: {places}')):
        check_overrides(cfg, {path: 1})


def test_a_variable_of_a_setting_s_name_was_read_with_the_file(cfg):
    cfg.num_classes = 2
    with pytest.raises(UserError, match='not a setting. Override it where it is used: model.bbox_head.num_classes$'):
        check_overrides(cfg, {'num_classes': 3})


def test_a_key_of_one_s_own_may_have_any_value(cfg, said):
    cfg.metric_of_my_hook = 'bbox'  # the same value as the evaluator's metric
    assert check_overrides(cfg, {'metric_of_my_hook': 'segm'}) == {'metric_of_my_hook': 'segm'}
    assert len(said) == 1


PREPROCESSOR = dict(type='SegDataPreProcessor', size=(64, 64))


@pytest.mark.parametrize(
    ('content', 'path', 'instead'),
    [
        (
            dict(data_preprocessor=PREPROCESSOR, model=dict(data_preprocessor=PREPROCESSOR)),
            'data_preprocessor.size',
            ' beside model.data_preprocessor: give model.data_preprocessor.size',
        ),
        (
            dict(model=dict(type='mmgroupnet.Binarized', model=dict(data_preprocessor=PREPROCESSOR))),
            'data_preprocessor.size',
            ' beside model.model.data_preprocessor: give model.model.data_preprocessor.size',
        ),
        (
            dict(model={}, model_wrapper_cfg=dict(static_graph=True)),
            'find_unused_parameters',
            ' beside model_wrapper_cfg.find_unused_parameters: give model_wrapper_cfg.find_unused_parameters',
        ),
        (dict(model={}), 'launcher', ': give the option --launcher'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_settings_that_another_one_shadows(content, path, instead):
    with pytest.raises(UserError, match=f'^--cfg-options {path} would not be read{instead}$'):
        check_overrides(Config(content), {path: 1})


def test_a_preprocessor_that_stands_alone_is_read(said):
    cfg = Config(dict(data_preprocessor=PREPROCESSOR, model=dict(type='ImageClassifier')))
    assert check_overrides(cfg, {'data_preprocessor.size': 1}) == {'data_preprocessor.size': 1}
    assert said == []
