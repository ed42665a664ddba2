"""A config that gives a variable of its base a value that nothing would read."""

import re
from pathlib import Path

import pytest

from mmgroupnet.engine.binarize_option import load_policy
from mmgroupnet.engine.configs import load_config
from mmgroupnet.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs'
BCCD = 'mmgroupnet::detection/fcos_groupnet_r18_bccd.py'
POLICY = 'mmgroupnet::_base_/policies/groupnet_k4.py'


def child(folder: Path, base: str, text: str) -> str:
    file = folder / 'mine.py'
    file.write_text(f'_base_ = {base!r}\n{text}\n')
    return str(file)


@pytest.mark.parametrize(
    ('text', 'where', 'places'),
    [
        (
            'num_bases = 1',
            '_base_/models/fcos_groupnet_r18_half.py',
            'model.backbone.num_bases, model.neck.num_bases, model.bbox_head.num_bases',
        ),
        ("data_root = 'elsewhere/'", '_base_/datasets/bccd_detection.py', 'train_dataloader.dataset.data_root, '),
    ],
)
def test_a_new_value_is_refused(text, where, places, tmp_path):
    file = child(tmp_path, BCCD, text)
    name = text.split()[0]
    message = (
        f'{file}: {name} is a Python variable of {CONFIGS / where}, whose settings were computed from the old value, '
        f'so the new one would not be read. Override it where it is used: {places}'
    )
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(file)


def test_of_a_policy(tmp_path):
    with pytest.raises(UserError, match='num_bases is a Python variable of .* it is used: policy.3.num_bases, '):
        load_policy(child(tmp_path, POLICY, 'num_bases = 1'))


def test_of_a_base_of_the_base(tmp_path):
    child(tmp_path, BCCD, '')
    (tmp_path / 'mine.py').rename(tmp_path / 'parent.py')
    with pytest.raises(UserError, match='num_bases is a Python variable of .*fcos_groupnet_r18_half.py'):
        load_config(child(tmp_path, 'parent.py', 'num_bases = 1'))


USED_IN = ('backbone', 'neck', 'bbox_head')


@pytest.mark.parametrize(
    ('text', 'num_bases'),
    [
        ('num_bases = 4', 4),  # the value that it has
        ('num_bases = 2 + 2', 4),
        ('num_bases = 1\nmodel = dict(backbone=dict(num_bases=num_bases))', 1),  # the file reads it itself
        ('num_bases = 2\nmodel = dict(' + ', '.join(f'{part}=dict(num_bases=2)' for part in USED_IN) + ')', 2),
        ('my_variable = 1', 4),
        ('train_cfg = dict(max_epochs=1)', 4),  # a setting
    ],
)
def test_what_is_read_or_changes_nothing_passes(text, num_bases, tmp_path):
    assert load_config(child(tmp_path, BCCD, text)).model.backbone.num_bases == num_bases


def test_reading_the_old_value_does_not_use_the_new_one(tmp_path):
    with pytest.raises(UserError, match='num_bases is a Python variable'):
        load_config(child(tmp_path, BCCD, 'num_bases = 1\nother = _base_.num_bases'))


def test_the_nearest_value_counts(tmp_path):
    new = 'model = dict(' + ', '.join(f'{part}=dict(num_bases=num_bases)' for part in USED_IN) + ')'
    Path(child(tmp_path, BCCD, f'num_bases = 2\n{new}')).rename(tmp_path / 'parent.py')
    load_config(child(tmp_path, 'parent.py', 'num_bases = 2'))
    with pytest.raises(UserError, match='num_bases is a Python variable'):
        load_config(child(tmp_path, 'parent.py', 'num_bases = 4'))


@pytest.mark.parametrize('name', ['backbone', 'backbone-neck', 'float-downsample'])
def test_a_policy_may_be_replaced(name, tmp_path):
    base = f'mmgroupnet::_base_/policies/groupnet_k4_{name}.py'
    text = "num_bases = 2\npolicy = [dict(become='layerwise', num_bases=2)]"
    assert load_policy(child(tmp_path, base, text)) == [dict(become='layerwise', num_bases=2)]


def test_a_base_beside_the_file(tmp_path):
    child(tmp_path, BCCD, '')
    (tmp_path / 'mine.py').rename(tmp_path / 'parent.py')
    assert load_config(child(tmp_path, '{{fileDirname}}/parent.py', '')).model.backbone.num_bases == 4


def test_other_libraries_are_left_alone(tmp_path):
    base = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
    assert load_config(child(tmp_path, base, "data_root = 'elsewhere/'")).data_root == 'elsewhere/'
