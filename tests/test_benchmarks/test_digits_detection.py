"""The recorded runs and the configs of the variants."""

from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks import digits_detection
from benchmarks.trainings import read_lines

ROOT = Path(__file__).resolve().parents[2]


def test_every_variant_has_its_line():
    lines = read_lines(ROOT / digits_detection.RESULTS)
    assert sorted(line['variant'] for line in lines) == sorted(digits_detection.VARIANTS)


@pytest.mark.parametrize(
    'name', [name for name in digits_detection.VARIANTS if 'twin' not in name and name != 'binary_7_epochs']
)
def test_a_variant_changes_its_own_part_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(digits_detection, 'WORK_DIR', tmp_path)
    base, config = (Config.fromfile(digits_detection.config_of(each)) for each in ('binary_7_epochs', name))
    changed = {
        (key, part)
        for key in ('model', 'optim_wrapper', 'train_cfg', 'train_dataloader')
        for part in config[key]
        if config[key][part] != base[key].get(part)
    }
    rate, neck, head = ('optim_wrapper', 'optimizer'), ('model', 'neck'), ('model', 'bbox_head')
    expected = {
        'binary': {('train_cfg', 'max_epochs')},
        'rate_2e-2': {rate},
        'rate_5e-3': {rate},
        'more_bases': {rate, head},
        'more_convs': {rate, head},
        'binary_laterals': {rate, neck},
        'binary_laterals_rate_1e-2': {neck},
        'learned_thresholds': {rate, neck, head, ('model', 'backbone')},
        'float_head': {rate, neck, head},
    }
    assert changed == expected[name]
