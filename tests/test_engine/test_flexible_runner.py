"""Training and testing with mmengine's FlexibleRunner, in which a strategy builds the model when a loop starts."""

import os
import shutil

import pytest
import torch
from mmengine.runner import FlexibleRunner

from mmgroupnet.engine.launch import build_runner
from mmgroupnet.engine.testing import run_test
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from mmgroupnet.layers.memory_layout import is_guard
from tests.test_engine.test_training import losses
from tests.test_tools.test_tools import run_tool
from tests.tiny_run import load_tiny_run, write_tiny_run

FLEXIBLE = dict(runner_type='FlexibleRunner')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Runs of two epochs with four iterations each: the Runner's is in ``plain``, FlexibleRunner's in ``work``."""
    folder = tmp_path_factory.mktemp('flexible')
    epochs = dict(train_cfg__max_epochs=2, train_cfg__val_interval=3)
    run_training(load_tiny_run(folder, work_dir=str(folder / 'plain'), **epochs))
    run_training(load_tiny_run(folder, **FLEXIBLE, **epochs))
    return folder


def test_losses_are_those_of_the_runner(trained):
    assert len(losses(trained / 'work')) == 8
    assert losses(trained / 'work') == losses(trained / 'plain')


def test_a_resumed_run_repeats_one_that_never_stopped(trained, tmp_path):
    shutil.copy(trained / 'work/epoch_1.pth', tmp_path)
    options = dict(FLEXIBLE, strategy=dict(type='SingleDeviceStrategy'), train_cfg__max_epochs=2)
    cfg = load_tiny_run(trained, work_dir=str(tmp_path), train_cfg__val_interval=3, **options)
    run_training(cfg, resume='auto')
    expected = losses(trained / 'work')
    assert losses(tmp_path) == {step: expected[step] for step in range(5, 9)}


def test_metrics_are_those_of_the_runner(trained, tmp_path):
    checkpoint = str(trained / 'plain/epoch_2.pth')
    out = tmp_path / 'predictions.pkl'
    found = run_test(load_tiny_run(trained, work_dir=str(tmp_path / 'a'), **FLEXIBLE), checkpoint, out=str(out))
    assert found == run_test(load_tiny_run(trained, work_dir=str(tmp_path / 'b')), checkpoint)
    assert out.stat().st_size > 0


def test_a_checkpoint_of_another_architecture(trained, tmp_path):
    other = dict(FLEXIBLE, work_dir=str(tmp_path), model__neck__num_bases=1)
    checkpoint = str(trained / 'work/epoch_1.pth')
    with pytest.raises(UserError, match=r'epoch_1\.pth is of another architecture .* of another shape: neck'):
        run_training(load_tiny_run(trained, **other), resume=checkpoint)
    with pytest.raises(UserError, match=r'epoch_1\.pth is of another architecture .* of another shape: neck'):
        run_test(load_tiny_run(trained, **other), checkpoint)


def test_its_model_is_there_before_it_starts(tmp_path):
    cfg = load_tiny_run(tmp_path, strategy=dict(type='SingleDeviceStrategy'), **FLEXIBLE)
    runner = build_runner(cfg)
    assert isinstance(runner, FlexibleRunner)
    assert isinstance(runner.model, torch.nn.Module)
    assert any(map(is_guard, runner.model.bbox_head._forward_hooks.values()))


def test_an_argument_that_a_part_refuses(tmp_path):
    with pytest.raises(UserError, match='^depth=19: GroupNetResNet has the depths'):
        run_training(load_tiny_run(tmp_path, model__backbone__depth=19, **FLEXIBLE))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPUs')
def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv('PORT', str(20000 + os.getpid() % 20000))
    config = write_tiny_run(tmp_path)
    config.write_text(config.read_text() + "\nrunner_type = 'FlexibleRunner'\n")
    options = ['train_cfg.max_epochs=1', 'model.backbone.norm_cfg.type=SyncBN']
    done = run_tool('dist_train.sh', 'tiny.py', '2', '--work-dir', 'work', '--cfg-options', *options, cwd=tmp_path)
    assert 'synchronised batch norms become ordinary ones' in done.stdout + done.stderr
    assert sorted(losses(tmp_path / 'work')) == [1, 2]  # two processes share the four batches
