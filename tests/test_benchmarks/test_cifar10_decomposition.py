"""The networks that the decomposition benchmark trains, and the table and plot of their results."""

import pytest
import torch
from mmengine.config import Config

from benchmarks import cifar10_decomposition as benchmark
from benchmarks.cifar10_decomposition import Run, close_runs, first_runs, gates_table, plot, results_table
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.launch import build_runner
from mmgroupnet.models.backbones import GroupNetResNet
from mmgroupnet.models.backbones.groupnet_block import GroupNetBlock
from mmgroupnet.registry import MODELS


def line(run: Run, top1: float) -> dict:
    return dict(run._asdict(), top1=top1)


LINES = [
    line(Run('gbd_v1', 1, 1), 50.0),
    line(Run('lbd', 3, 1), 52.0),
    line(Run('gbd_v1', 3, 1), 55.0),
    line(Run('soft_gate', 3, 1), 56.0),
    line(Run('lbd', 5, 1), 54.0),
    line(Run('gbd_v1', 5, 1), 58.0),
    line(Run('soft_gate', 5, 1), 60.0),
]


def test_every_network_is_trained_once_with_the_first_seed():
    assert first_runs(1) == [Run(*(entry[field] for field in Run._fields)) for entry in LINES]
    assert set(benchmark.OF_RESNET_8) <= set(GroupNetResNet.decompositions)
    runs = first_runs(3)
    assert len(set(runs)) == len(runs) == 2 * 2 * len(benchmark.DECOMPOSITIONS)
    assert {run.num_bases for run in runs} == {3, 5} and {run.seed for run in runs} == {0, 1}


def test_what_is_close_gets_a_second_seed():
    assert close_runs(LINES) == [Run('gbd_v1', 3, 1, 1), Run('soft_gate', 3, 1, 1)]


def test_table_and_plot(tmp_path):
    lines = [*LINES, line(Run('soft_gate', 3, 1, 1), 57.0), line(Run('soft_gate', 3, 3), 99.0)]
    assert results_table(lines, 1).splitlines() == [
        '| decomposition | K = 1 | K = 3 | K = 5 |',
        '| --- | --- | --- | --- |',
        '| LBD | 50.0 | 52.0 | 54.0 |',
        '| GBD v1 | 50.0 | 55.0 | 58.0 |',
        '| Group-Net | 50.0 | 56.5 (56.0, 57.0) | 60.0 |',
    ]
    plot(lines, 1, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 10_000


def test_how_far_the_gates_moved():
    lines = [
        dict(line(Run('lbd', 3, 3), 50.0), gates=[], initial_gates=[]),
        dict(line(Run(benchmark.PER_BRANCH, 3, 3, 1), 50.0), initial_gates=[[0.5, 0.6]], gates=[[0.4, 0.62]]),
    ]
    assert gates_table(lines).splitlines()[2:] == [
        '| Group-Net, a gate per branch, K = 3, seed 1 | 2 | 0.50 to 0.60 | 0.40 to 0.62 | 0.06 | 0.10 |',
    ]


def test_gates_at_the_start_are_those_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'WORK_DIR', tmp_path)
    config = benchmark.config_of(Run(benchmark.PER_BRANCH, 3, 1, seed=1))
    cfg = load_config(str(config))
    cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), launcher='none'))
    assert benchmark.initial_gates(config) == benchmark.gates_of(build_runner(cfg).model.state_dict())


@pytest.mark.parametrize('run', [Run('lbd', 5, 1), Run(benchmark.PER_BRANCH, 3, 3, 1)], ids=str)
def test_the_config_of_a_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'WORK_DIR', tmp_path)
    cfg = Config.fromfile(benchmark.config_of(run))
    backbone = MODELS.build(dict(cfg.model.backbone))
    blocks = [module for module in backbone.modules() if isinstance(module, GroupNetBlock)]
    assert len(blocks) == 3 * run.blocks
    thetas = [len(theta) for name, theta in backbone.named_parameters() if name.endswith('.connection.theta')]
    assert thetas == ([] if run.decomposition == 'lbd' else [run.num_bases] * (len(blocks) - 1))
    assert cfg.randomness.seed == run.seed and cfg.train_cfg.max_epochs == benchmark.EPOCHS
    crops = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert [crop.crop_size for crop in crops] == [32 if run.blocks == 1 else 24]


def test_gates_are_shares():
    gates = {
        'backbone.stages.0.1.connection.theta': torch.tensor([0.0, 10.0]),
        'backbone.stages.1.0.connection.theta': torch.tensor([-10.0]),
    }
    assert benchmark.gates_of(dict(gates, weight=torch.ones(1))) == [[0.5, 1.0], [0.0]]
