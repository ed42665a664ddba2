"""The configs of the variants and the table of their results."""

import pytest
from mmengine.config import Config

from benchmarks import cifar10_quantizers as benchmark


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'WORK_DIR', tmp_path)
    return {name: Config.fromfile(benchmark.config_of(name)) for name in benchmark.VARIANTS}


def test_a_variant_adds_one_thing_to_the_one_before(configs):
    def parts(cfg: Config) -> dict:
        quantizers = cfg.model.backbone.binary_cfg
        return dict(
            start=cfg.model.backbone.get('init_cfg') is not None,
            weight=quantizers.weight.type,
            activation=quantizers.get('activation', {}).get('type'),
            labels='mmgroupnet.DistillationHook' in [hook.type for hook in cfg.custom_hooks],
        )

    added = []
    for before, after in zip(list(configs.values()), list(configs.values())[1:], strict=False):
        before, after = parts(before), parts(after)
        added.append([key for key in after if after[key] != before[key]])
    assert added == [['start'], ['weight'], ['activation'], ['labels'], ['start']]


def test_all_variants_have_one_budget(configs):
    budgets = {
        str(
            (
                cfg.train_cfg.max_epochs,
                cfg.train_dataloader.dataset.indices,
                cfg.train_dataloader.dataset.pipeline,
                cfg.optim_wrapper,
                cfg.param_scheduler,
                cfg.randomness,
            )
        )
        for cfg in configs.values()
    }
    assert len(budgets) == 1


def test_table():
    lines = [dict(variant='from_float', top1=71.0), dict(variant='paper', top1=70.5)]
    rows = benchmark.results_table(lines).splitlines()[2:]
    assert rows == ["| the paper's quantizers, from scratch | 70.5 |  |", '| + from a float ResNet-20 | 71.0 | +0.5 |']
