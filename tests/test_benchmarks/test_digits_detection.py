"""The recorded runs, and the configs of the variants."""

from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks import digits_detection
from benchmarks.trainings import read_lines

ROOT = Path(__file__).resolve().parents[2]


def test_every_variant_has_its_line():
    lines = read_lines(ROOT / digits_detection.RESULTS)
    assert sorted(line['variant'] for line in lines) == sorted(digits_detection.VARIANTS)


@pytest.mark.parametrize('name', [name for name in digits_detection.VARIANTS if name not in ('twin', 'binary')])
def test_a_variant_changes_its_own_part_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(digits_detection, 'WORK_DIR', tmp_path)
    base, config = (Config.fromfile(digits_detection.config_of(each)) for each in ('binary_laterals', name))
    assert config.model.neck.binary_laterals
    changed = {
        (key, part)
        for key in ('model', 'optim_wrapper', 'train_cfg', 'train_dataloader')
        for part in config[key]
        if config[key][part] != base[key].get(part)
    }
    assert (
        changed
        == {
            'binary_laterals': set(),
            'float_head': {('model', 'bbox_head')},
            'learned_thresholds': {('model', part) for part in ('backbone', 'neck', 'bbox_head')},
            'rate_1e-2': {('optim_wrapper', 'optimizer')},
        }[name]
    )
