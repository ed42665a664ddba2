"""Values that are read from the model of a config."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import data_preprocessor_of, is_binarized_config, is_packed_config, type_name


@pytest.mark.parametrize(
    ('entry', 'expected'),
    [
        (dict(type='A'), 'A'),
        (dict(type='x.A'), 'A'),
        (dict(type='x.y.A'), 'A'),
        (dict(type=Path), 'Path'),
        (dict(), ''),
        (ValueError('built'), 'ValueError'),
    ],
    ids=str,
)
def test_type_name(entry, expected):
    assert type_name(entry) == expected


def test_a_config_without_a_model_is_no_whole_config():
    for is_kind in (is_packed_config, is_binarized_config):
        with pytest.raises(UserError, match=r'the config has no model=dict\(...\): give a whole config'):
            is_kind(Config(dict(train_dataloader={})))


def test_the_data_preprocessor_is_found_wherever_it_stands():
    inner = dict(type='A', data_preprocessor=dict(to_rgb=True))
    assert data_preprocessor_of(Config(dict(model=inner)), 'to_rgb') == dict(to_rgb=True)
    assert data_preprocessor_of(Config(dict(model=dict(type='B', model=inner))), 'to_rgb') == dict(to_rgb=True)
    beside = dict(to_rgb=False)
    cfg = Config(dict(model=dict(type='B', model=inner), data_preprocessor=beside))
    assert data_preprocessor_of(cfg, 'to_rgb') == beside
    assert data_preprocessor_of(cfg, 'mean') == data_preprocessor_of(Config({}), 'mean') == {}
