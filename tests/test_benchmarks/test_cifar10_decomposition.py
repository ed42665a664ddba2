"""The networks that the decomposition benchmark trains, and the table and plot of their results."""

import pytest
import torch
from mmengine.config import Config

from benchmarks import cifar10_decomposition as benchmark
from benchmarks.cifar10_decomposition import Run, close_runs, first_runs, plot, results_table
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


def test_gates_are_read_from_a_checkpoint(tmp_path):
    gates = {
        'backbone.stages.0.1.connection.theta': torch.tensor([0.0, 10.0]),
        'backbone.stages.1.0.connection.theta': torch.tensor([-10.0]),
    }
    torch.save(dict(state_dict=dict(gates, weight=torch.ones(1))), tmp_path / 'epoch_1.pth')
    assert benchmark.gates_of(tmp_path / 'epoch_1.pth') == [[0.5, 1.0], [0.0]]
