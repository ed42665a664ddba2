"""The pinned versions of the lock file lie in the ranges that setup.py declares."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parents[1] / 'requirements'
# Packages with the same modules as the declared ones, here without windows.
STANDS_FOR = {'opencv-python': 'opencv-python-headless'}
BUILT_FROM_SOURCE = 'mmcv'  # therefore not in the lock file


def read(name):
    lines = (line.partition('#')[0].strip() for line in (FOLDER / f'{name}.txt').read_text().splitlines())
    return [Requirement(line) for line in lines if line]


LOCKED = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in read('lock')}


@pytest.mark.parametrize('name', ['runtime', 'mim', 'mmdet', 'mmseg', 'mmpretrain', 'onnx', 'demo', 'tests', 'lint'])
def test_pinned_versions_lie_in_the_declared_ranges(name):
    for declared in read(name):
        if declared.name == BUILT_FROM_SOURCE:
            continue
        pinned = LOCKED[canonicalize_name(STANDS_FOR.get(declared.name, declared.name))]
        assert declared.specifier.contains(pinned), f'{declared} is declared, {pinned} is pinned'


def test_the_oldest_versions_that_are_tested_are_the_floors_that_are_declared():
    tested = {pin.name: str(pin.specifier) for pin in read('oldest')}
    declared = {requirement.name: requirement.specifier for name in ('runtime', 'mim') for requirement in read(name)}
    for name in ('torch', 'mmengine'):
        assert tested[name].replace('==', '>=') in map(str, declared[name])
