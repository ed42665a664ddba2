"""Errors in a config that are found before anything is built from it."""

import logging
import re
from pathlib import Path

import pytest
from mmdet.models import FCOS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper

from mmgroupnet.engine.binarize_option import load_policy
from mmgroupnet.engine.configs import load_config, resolve_type, write_config
from mmgroupnet.engine.hooks import BinaryStatisticsHook
from mmgroupnet.errors import UserError, nearest

CONFIGS = Path(__file__).parents[2] / 'configs'


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
    """mmengine warns if a scope lacks some of its registries; for users this warning is noise."""
    said = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda logger, record: said.append(record))
    assert resolve_type(name, scope) is expected
    assert [record.getMessage() for record in said if record.levelno >= logging.WARNING] == []


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


def test_our_configs_have_names_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config('mmgroupnet::fcos_groupnet_r50_coco.py')
    assert cfg.model.to_dict() == load_config(str(CONFIGS / 'fcos_groupnet_r50_coco.py')).model.to_dict()
    assert load_config('mmgroupnet::demo/fcos_groupnet_digits.py').num_bases == 3
    policy = load_policy('mmgroupnet::_base_/policies/groupnet_k4.py')
    assert policy == load_policy(str(CONFIGS / '_base_/policies/groupnet_k4.py'))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'mmgroupnet::fcos_groupnet_r18_bccd.py',
            'config mmgroupnet::fcos_groupnet_r18_bccd.py does not exist '
            "(did you mean 'mmgroupnet::detection/fcos_groupnet_r18_bccd.py'?)",
        ),
        ('mmgroupnet::', 'config mmgroupnet:: does not exist'),
        ('mmgroupnet::detection', 'config mmgroupnet::detection does not exist'),
        ('mmdet::fcos/nothing.py', 'config mmdet::fcos/nothing.py: no installed OpenMMLab library has it'),
        ('torch::a/b.py', 'config torch::a/b.py: no installed OpenMMLab library has it'),
        ('nowhere::a/b.py', 'config nowhere::a/b.py: nowhere is not installed'),
    ],
)
def test_names_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(name)


def test_a_base_by_name(tmp_path):
    """The file may also read values that it inherits. The scope of the base's name does not become the scope of its
    parts: they stay parts of mmdet."""
    file = tmp_path / 'mine.py'
    file.write_text(
        "_base_ = ['mmgroupnet::fcos_groupnet_r50_coco.py']\n"
        'train_cfg = dict(max_epochs=3)\n'
        'model = dict(bbox_head=dict(num_classes=2))\n'
        'backbone = _base_.model.backbone\n'
        'depth = {{_base_.model.backbone.depth}}\n'
    )
    cfg = load_config(str(file))
    assert (cfg.train_cfg.max_epochs, cfg.model.bbox_head.num_classes, cfg.depth) == (3, 2, 50)
    assert cfg.model.type == 'FCOS' and cfg.default_scope == 'mmdet'
    assert "_scope_='mmgroupnet'" not in cfg.pretty_text
    (tmp_path / 'child.py').write_text("_base_ = 'mine.py'\n")
    assert load_config(str(tmp_path / 'child.py')).model.to_dict() == cfg.model.to_dict()


@pytest.mark.parametrize(
    ('base', 'message'),
    [
        (
            'mmgroupnet::detecton/fcos_groupnet_r18_bccd.py',
            'config mmgroupnet::detecton/fcos_groupnet_r18_bccd.py does not exist '
            "(did you mean 'mmgroupnet::detection/fcos_groupnet_r18_bccd.py'?)",
        ),
        ('mmdet::fcos/nothing.py', 'file "'),
        ('mmdet::nothing.py', '`_get_package_and_cfg_path` is used'),
        ('nowhere::a/b.py', 'mmengine does not support to load nowhere config'),
        ('mmocr::a/b.py', 'mmocr is not installed'),
    ],
)
def test_a_base_that_does_not_exist(base, message, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(f'_base_ = {base!r}\n')
    with pytest.raises(UserError, match=re.escape(f'{file}: _base_ {base!r} cannot be found: {message}')):
        load_config(str(file))


def test_mmengine_is_left_as_it_was(tmp_path):
    before = Config._get_cfg_path
    file = tmp_path / 'mine.py'
    file.write_text("_base_ = 'mmgroupnet::nothing.py'\n")
    with pytest.raises(UserError):
        load_config(str(file))
    assert Config._get_cfg_path is before


def test_writing(tmp_path):
    cfg = load_config('mmgroupnet::demo/fcos_groupnet_digits.py')
    write_config(cfg, tmp_path / 'new/whole.py')
    assert load_config(str(tmp_path / 'new/whole.py')).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ('path', 'message'),
    [('whole.yaml', '--out .*whole.yaml: give a name that ends in .py'), ('file/whole.py', 'cannot be written: ')],
)
def test_what_cannot_be_written(path, message, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=message):
        write_config(Config(dict(a=1)), tmp_path / path)
