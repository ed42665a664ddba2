"""tools/deploy/pack.py: its table, its file and its errors."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.checkpoints.packed import read_packed
from mmgroupnet.layers import BinaryConv2d
from tests.tiny_run import load_tiny_run

SCRIPT = Path(__file__).parents[2] / 'tools' / 'deploy' / 'pack.py'


@pytest.fixture(scope='module')
def model():
    return {}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, model):
    """The tiny detector's config and weights; ``model['float']`` is set to the model."""
    folder = tmp_path_factory.mktemp('pack')
    cfg = load_tiny_run(folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model['float'] = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model['float'].state_dict()), folder / 'float.pth')
    return folder


@pytest.fixture
def pack(monkeypatch, capsys, folder):
    """A function that runs the tool in this process; returns exit status, output and errors."""
    spec = importlib.util.spec_from_file_location('pack', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        status = 0
        try:
            script.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_a_person_packs_a_checkpoint(folder, model):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    command = [sys.executable, str(SCRIPT), 'tiny.py', 'float.pth', '--out', 'new/packed.pth', '--strict']
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    convs = {name: part for name, part in model['float'].named_modules() if isinstance(part, BinaryConv2d)}
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith('layer '))
    table = [re.split(r'  +', line.strip()) for line in lines[start:]]
    assert table[0] == ['layer', 'result', 'bytes before', 'bytes after']
    before = {name: conv.weight.numel() * 4 for name, conv in convs.items()}
    after = {name: len(conv.weight) * -(-conv.weight[0].numel() // 8) for name, conv in convs.items()}
    assert table[1:-2] == [[name, 'packed', f'{before[name]:,}', f'{after[name]:,}'] for name in convs]
    totals = [f'{sum(sizes.values()):,}' for sizes in (before, after)]
    assert table[-2] == ['total', f'{len(convs)} of {len(convs)} packed', *totals]
    size = (folder / 'new/packed.pth').stat().st_size
    assert re.fullmatch(rf'new/packed\.pth: {size:,} bytes, packed in \d+\.\d s', lines[-1])
    assert 'dataset_meta' not in read_packed(folder / 'new/packed.pth')['meta']


REAL_NECK = ['--cfg-options', 'model.neck.binary_cfg.weight.type=mmgroupnet.RealWeight']


def test_the_table_says_what_stays_float_and_why(pack, folder, tmp_path):
    status, out, _ = pack('tiny.py', 'float.pth', '--out', tmp_path / 'packed.pth', *REAL_NECK)
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith('neck.')]
    assert lines and all('RealWeight has no signs: its weights are real-valued' in line for line in lines)
    assert all(line.split()[-1] == line.split()[-2] for line in lines)
    packed = sum(line.startswith('backbone.') for line in out.splitlines())
    assert f'{packed} of {packed + len(lines)} packed' in out
    read_packed(tmp_path / 'packed.pth')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['tiny.py', 'float.pth', '--strict', *REAL_NECK], r'--strict: \d+ of \d+ binary layers stay float \(neck'),
        (['tiny.py', 'nowhere.pth'], 'checkpoint nowhere.pth does not exist'),
        (['tiny.py', 'tiny.py'], r'checkpoint tiny\.py is truncated or no checkpoint of torch'),
        (
            ['tiny.py', 'float.pth', '--cfg-options', 'model.backbone.num_bases=3'],
            r'checkpoint float\.pth is of another architecture than the config',
        ),
        (
            ['tiny.py', 'float.pth', '--cfg-options', 'model.backbone.num_base=3'],
            r"model\.backbone: GroupNetResNet takes no argument 'num_base' \(did you mean 'num_bases'\?\)",
        ),
        (['tiny.py', 'float.pth', '--cfg-options', 'model.backbone.depth=19'], 'depth=19'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(pack, tmp_path, arguments, message):
    status, _, errors = pack(arguments[0], arguments[1], '--out', tmp_path / 'packed.pth', *arguments[2:])
    assert status == 1
    assert re.match(f'error: .*{message}', errors.splitlines()[-1])
    assert 'Traceback' not in errors
    assert list(tmp_path.iterdir()) == []
