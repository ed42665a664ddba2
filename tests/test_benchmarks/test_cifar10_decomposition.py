"""Which networks the decomposition benchmark trains, and what becomes of their results."""

from mmengine.config import Config

from benchmarks import cifar10_decomposition as benchmark
from benchmarks.cifar10_decomposition import Run, close_runs, first_runs, plot, results_table
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.models.backbones import GroupNetResNet


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
    assert set(benchmark.DECOMPOSITIONS) <= set(GroupNetResNet.decompositions)


def test_what_is_close_gets_a_second_seed():
    assert close_runs(LINES, 1) == [Run('gbd_v1', 3, 1, 1), Run('soft_gate', 3, 1, 1)]
    assert close_runs(LINES, 3) == []


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


def test_its_options_are_those_of_the_config():
    cfg = Config.fromfile(benchmark.ROOT / benchmark.CONFIG)
    check_overrides(cfg, dict.fromkeys(benchmark.options(Run('lbd', 3, 1))))
