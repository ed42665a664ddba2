"""The contestants of the training benchmark; the plain loop over branches is the same network as ours."""

import io
import json
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks import train_step, train_step_cuda
from benchmarks.timing import Spread
from benchmarks.train_step import CHECKPOINTED, FLOAT, OURS, OURS_CP, PLAIN, Setting

SETTING = Setting(18, 2, 64, 2)


def copy_weights(plain: nn.Module, ours: nn.Module) -> None:
    """Copies the weights of our network to the plain loop."""
    backbone = ours.backbone
    plain.stem.load_state_dict(backbone.stem.state_dict())
    plain.fc.load_state_dict(ours.fc.state_dict())
    blocks = [block for stage in backbone.stages for block in stage]
    with torch.no_grad():
        for target, source in zip(plain.blocks, blocks, strict=True):
            if target.theta is not None:
                target.theta.copy_(source.connection.theta)
            if source.shortcut is not None:
                target.shortcut.load_state_dict(source.shortcut.state_dict())
            for index, unit in enumerate(source.units):
                for k, branch in enumerate(target.branches):
                    branch.convs[index].weight.copy_(unit.conv.weight.chunk(plain.num_bases)[k])
                    for name in ('weight', 'bias'):
                        value = getattr(unit.norm, name).chunk(plain.num_bases)[k]
                        getattr(branch.norms[index], name).copy_(value)


@pytest.mark.parametrize(('depth', 'name'), [(18, PLAIN), (18, CHECKPOINTED), (50, PLAIN)])
def test_plain_loop_is_the_same_network(depth, name):
    setting = SETTING._replace(depth=depth)
    plain, ours = train_step.build(name, setting).double().eval(), train_step.build(OURS, setting).double().eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)  # no input of a sign is exactly zero: rounding would decide its sign
    copy_weights(plain, ours)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    found, expected = plain(x), ours(x)
    assert_close(found, expected)
    for value, wanted in zip(
        torch.autograd.grad(found.sum(), [plain.stem[0].weight, plain.fc.weight]),
        torch.autograd.grad(expected.sum(), [ours.backbone.stem[0].weight, ours.fc.weight]),
        strict=True,
    ):
        # In the plain loop, about one in thirty sums that should be zero is a rounding error, and its ReLU may pass it.
        assert (value - wanted).norm() < 0.5 * wanted.norm()


def test_saved_bytes_are_counted_once():
    layer = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid())
    x = torch.randn(7, 3)
    # The sigmoid keeps its output, and the square in the loss the same tensor; weights and the image do not count.
    assert train_step.saved_bytes(layer, x) == 7 * 5 * 4


def test_lean_keeps_less():
    x = train_step.images(SETTING)
    kept = {}
    for name in (PLAIN, CHECKPOINTED, OURS, OURS_CP):
        model = train_step.build(name, SETTING)
        train_step.note_inputs_of_checkpoints(model)
        kept[name] = train_step.saved_bytes(model, x)
    assert kept[OURS] < kept[PLAIN] / 3
    assert kept[OURS_CP] < kept[OURS]
    assert kept[CHECKPOINTED] < kept[PLAIN] / 3


def test_the_peak_is_that_of_a_process_of_its_own(monkeypatch):
    def run(command, **_):  # runs main here, since a process would spend seconds on its imports
        assert command[:2] == [sys.executable, train_step.__file__]
        with redirect_stdout(io.StringIO()) as printed:
            train_step.main(command[2:])
        return SimpleNamespace(stdout=printed.getvalue())

    monkeypatch.setattr(train_step.subprocess, 'run', run)
    assert train_step.peak_in_a_process(OURS, SETTING._replace(num_bases=1), threads=1) > 0


def test_main_writes_and_prints_all_of_it(tmp_path, capsys, monkeypatch):
    peaks = {FLOAT: 3 * train_step.MIB, PLAIN: 8 * train_step.MIB, OURS: 2 * train_step.MIB}
    monkeypatch.setattr(train_step, 'peak_in_a_process', lambda name, setting, threads: peaks[name])
    path = tmp_path / 'results.json'
    # One thread: with several, test processes that run in parallel would slow each other down.
    arguments = ['18', '1', '64', '2', '--rounds', '1', '--threads', '1', '--out', str(path)]
    train_step.main([*arguments, '--contestants', *peaks])
    printed = capsys.readouterr().out
    assert 'ResNet-18, K = 1, 2 x 64x64' in printed and '| ours |' in printed
    (setting,) = json.loads(path.read_text())['settings']
    assert {row['name']: row['peak_bytes'] for row in setting['contestants']} == peaks
    assert all(row['saved_bytes'] > 0 and row['ms'][3] == 1 for row in setting['contestants'])


def test_without_a_gpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='^--device cuda: torch sees no GPU here$'):
        train_step.main(['--device', 'cuda'])


@pytest.mark.parametrize('contestant', train_step_cuda.OF_NETWORKS, ids=lambda each: each.name)
def test_contestants_of_a_gpu_take_a_step(contestant):
    # Without torch.compile and without Triton's interpreter: both take minutes for a network of this size.
    contestant = contestant._replace(is_compiled=False, passes='torch')
    model, x = train_step_cuda.make(contestant, Setting(18, 1, 32, 2))
    with train_step_cuda.with_passes(contestant):
        train_step_cuda.step(model, x, torch.bfloat16)
    assert all(value.grad is None for value in model.parameters())


def test_table_of_a_gpu(capsys):
    rows = [
        dict(name=PLAIN, peak_bytes=2**22, kernels=900, ms=Spread(8.0, 7.0, 9.0, 5)),
        dict(name='ours, torch', peak_bytes=2**21, kernels=1200, ms=Spread(10.0, 9.5, 11.0, 5)),
        dict(name=FLOAT, peak_bytes=None, kernels=None, ms=None),
    ]
    train_step_cuda.print_table('a setting', rows)
    printed = capsys.readouterr().out
    assert '| ours, torch | 2 | 0.50 | 10.0 (9.5..11.0) | 1.25 | 1200 |' in printed
    assert '| float twin | out of memory |' in printed


def test_incomplete_setting(capsys):
    with pytest.raises(SystemExit):
        train_step.main(['18', '5'])
    assert 'setting: 2 numbers, give DEPTH K SIZE BATCH' in capsys.readouterr().err
