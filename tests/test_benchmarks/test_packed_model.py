"""The benchmark of whole models, run on a small one."""

import builtins
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks import packed_model
from benchmarks.packed_model import GroupNetClassifier, Subject, as_trained, difference, layer_times, megabytes
from mmgroupnet.deploy import pack

ROOT = Path(__file__).parents[2]
ENGINES = {'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'}
SMALL = dict(num_classes=5, base_channels=16)


def float_twin() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AvgPool2d(3), nn.Flatten()
    )


SUBJECT = Subject(32, {'K = 2': partial(GroupNetClassifier, 18, 2, **SMALL)}, float_twin)


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_engines(monkeypatch):
    """Imports of the other engines fail, as if only torch were installed."""
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name in ENGINES:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fake)


def test_models_have_statistics_as_after_a_training():
    images = torch.randn(2, 3, 32, 32)
    model = as_trained(float_twin(), images)
    norm = model[1]
    assert not model.training
    assert_close(norm.running_mean, model[0](images).mean((0, 2, 3)))
    assert norm.weight.std() > 0 and norm.bias.std() > 0


def test_packed_weights_take_a_bit():
    model = GroupNetClassifier(18, 2, **SMALL)
    conv = nn.Module()
    conv.layers = model.backbone.stages
    # Everything is 32 times smaller except the shifts, scales and statistics of the norms.
    assert megabytes(conv) / megabytes(pack(model).backbone.stages) > 15
    shared = nn.ModuleList([nn.Linear(10, 10, bias=False)] * 2)
    assert megabytes(shared) == 400e-6


def test_difference_is_relative_to_the_norm():
    assert difference([torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([3.0, 5.0])]) == pytest.approx(
        1 / 34**0.5
    )


def test_contestants_that_are_missing_are_named_with_the_reason(no_engines, tmp_path, capsys):
    contestants, skipped = packed_model.prepare(SUBJECT, 1, tmp_path)
    assert list(contestants) == [
        'packed, K = 2',
        'unpacked, K = 2',
        'simulated, K = 2',
        'torch float32',
        'torch float32, channels_last',
    ]
    reason = "No module named 'onnx'"
    assert skipped == dict.fromkeys(('ONNX Runtime float32', 'OpenVINO float32', 'OpenVINO int8'), reason)
    assert f'OpenVINO int8 is left out: {reason}' in capsys.readouterr().out


def test_contestants_agree(no_engines, tmp_path):
    contestants, _ = packed_model.prepare(SUBJECT, 1, tmp_path)
    assert contestants['packed, K = 2'].difference < 1e-4
    assert_close(contestants['packed, K = 2'].run()[0], contestants['simulated, K = 2'].run()[0])
    assert torch.equal(contestants['packed, K = 2'].run()[0], contestants['unpacked, K = 2'].run()[0])
    assert contestants['torch float32, channels_last'].difference < 1e-5


def test_the_channels_last_twin_leaves_the_other_contiguous(no_engines, tmp_path, monkeypatch):
    models = []
    monkeypatch.setattr(
        packed_model,
        'in_torch',
        lambda model, image, real=packed_model.in_torch: models.append(model) or real(model, image),
    )
    packed_model.prepare(SUBJECT, 1, tmp_path)
    contiguous, channels_last = models[-2:]
    assert contiguous[3].weight.is_contiguous()
    assert channels_last[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not channels_last[3].weight.is_contiguous()


def compare_engines(folder: Path) -> None:
    contestants, skipped = packed_model.prepare(SUBJECT, 1, folder)
    assert skipped == {}
    for name in ('ONNX Runtime float32', 'OpenVINO float32'):
        assert contestants[name].difference < 1e-5
    assert 1e-5 < contestants['OpenVINO int8'].difference < 0.3  # not zero: the model was quantized
    assert [output.shape for output in contestants['OpenVINO int8'].run()] == [(1, 64)]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ENGINES),
    reason='requirements/benchmark.txt is not installed',
)
def test_other_engines_agree(tmp_path):
    # In a separate process: after importing these engines, a process crashes when it forks, such as for data loaders.
    code = 'import sys, pathlib; from tests.test_benchmarks import test_packed_model as test; '
    code += 'test.compare_engines(pathlib.Path(sys.argv[1]))'
    environ = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code, tmp_path], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_computes_something_else_is_refused(no_engines, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_model, 'export_onnx', lambda *args: None)
    monkeypatch.setattr(packed_model, 'in_onnx_runtime', lambda *args: lambda: [torch.zeros(1, 64)])
    with pytest.raises(RuntimeError, match='ONNX Runtime float32: its outputs differ by 1 of their norm from those of'):
        packed_model.prepare(SUBJECT, 1, tmp_path)


def test_layers_are_blocks_and_what_has_no_parts():
    packed = pack(as_trained(GroupNetClassifier(18, 2, **SMALL), torch.randn(2, 3, 32, 32)))
    rows = layer_times(packed, torch.randn(1, 3, 32, 32), rounds=2)
    found = {row['name']: (row['type'], row['calls'], row['output']) for row in rows}
    assert list(found) == [
        'backbone.stem',
        *(f'backbone.stages.{stage}.{block}' for stage in range(4) for block in range(2)),
        'backbone.stages.3.1.merge',
        'fc',
        'between',
        'total',
    ]
    assert found['backbone.stages.1.0'] == ('PackedBlock', 1, [1, 64, 4, 4])
    assert found['fc'] == ('Linear', 1, [1, 5])
    *parts, total = (row['ms'] for row in rows)
    assert all(part.count == 2 for part in parts)
    assert 0 < max(part.median for part in parts) < total.high
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in packed.modules())


def test_a_run_prints_tables_and_writes_json_and_a_plot(no_engines, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(packed_model.SUBJECTS, 'small', SUBJECT)
    monkeypatch.setattr(packed_model, 'SIMULATED_ROUNDS', 1)
    packed_model.main(['--models', 'small', '--rounds', '2', '--layers', '--out', str(tmp_path / 'model.json')])
    results = json.loads((tmp_path / 'model.json').read_text())
    assert results['machine']['threads'] == 1
    small = results['models']['small']
    rows = {row['name']: row for row in small['contestants']}
    assert rows['packed, K = 2']['megabytes'] < rows['simulated, K = 2']['megabytes'] / 10
    assert (rows['packed, K = 2']['ms'][3], rows['simulated, K = 2']['ms'][3]) == (2, 1)
    assert rows['torch float32']['over_torch'] == [1, 1, 1, 2]
    assert small['fastest_float32'] in ('torch float32', 'torch float32, channels_last')
    assert set(small['skipped']) == {'ONNX Runtime float32', 'OpenVINO float32', 'OpenVINO int8'}
    assert small['layers']['packed, K = 2'][-1]['name'] == 'total'
    assert (tmp_path / 'model.png').stat().st_size > 1000
    out = capsys.readouterr().out
    assert "| OpenVINO int8 | No module named 'onnx' |" in out
    assert '| backbone.stages.0.0 | PackedBlock | 1 | 1x32x8x8 |' in out
