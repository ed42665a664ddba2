"""The statistics that show whether a binary network is alive."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import get_priority
from torch import nn

from mmgroupnet.engine.hooks import BinaryStatisticsHook
from mmgroupnet.layers import BinaryConv2d

# (N, C, H, W) = (1, 2, 1, 4): the signs of channel 0 are all +1 (also of zero); channel 1 has one +1 in four pixels.
HALF_DEAD = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]], [[1.0, -1.0, -2.0, -3.0]]]])


@pytest.fixture
def runner(tmp_path):
    model = nn.ModuleDict(dict(conv=BinaryConv2d(2, 3, 1), other=nn.Conv2d(2, 3, 1)))
    return SimpleNamespace(model=model, logger=logging.getLogger('statistics'), work_dir=str(tmp_path), epoch=0, iter=0)


def run_epoch(hook, runner, batches, change=lambda: None):
    if runner.iter == 0:
        hook.before_train(runner)
    for index, batch in enumerate(batches):
        hook.before_train_iter(runner, index)
        for x in batch:
            runner.model['conv'](x)
        hook.after_train_iter(runner, index)
        runner.iter += 1
    change()
    hook.after_train_epoch(runner)
    runner.epoch += 1


def table(runner):
    with open(f'{runner.work_dir}/binary_statistics.jsonl') as file:
        return [json.loads(line) for line in file]


def test_figures_of_one_epoch(runner, caplog):
    weight = runner.model['conv'].weight

    def flip_two():
        with torch.no_grad():
            weight.view(-1)[:2].neg_()

    with caplog.at_level(logging.INFO, 'statistics'):
        run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]], flip_two)
    row = dict(epoch=1, iteration=1, layer='conv', positive_share=5 / 8, dead_channels=1, channels=2)
    assert table(runner) == [dict(row, weight_flips=2, weights=6)]
    assert caplog.messages == [
        '1 binary layers: share of +1 from 0.625 (conv) to 0.625 (conv); 1 of 2 channels dead (most: 1 of 2 in conv); '
        '33.33% of the weights changed sign'
    ]


@pytest.mark.parametrize(('quantizer', 'flips'), [('TensorScaleWeight', 6), ('BalancedWeight', 0)])
def test_flips_are_those_of_the_signs_that_the_layer_uses(runner, quantizer, flips):
    """BalancedWeight subtracts the mean of a channel, so a constant that is added to all weights flips none."""
    conv = runner.model['conv'] = BinaryConv2d(2, 3, 1, weight=dict(type=f'mmgroupnet.{quantizer}'))
    conv.weight.data = torch.tensor([[-0.1, -0.2]]).expand(3, 2).contiguous().view(3, 2, 1, 1)
    run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]], lambda: conv.weight.data.add_(1))
    assert table(runner)[0]['weight_flips'] == flips


def test_a_negative_scale_flips_its_channel(runner):
    conv = runner.model['conv'] = BinaryConv2d(2, 3, 1, weight=dict(type='mmgroupnet.LearnedScaleWeight'))
    run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]], lambda: conv.weight_quantizer.alpha.data[0].neg_())
    assert table(runner)[0]['weight_flips'] == 2


def test_iterations_between_the_samples_are_not_seen(runner):
    run_epoch(BinaryStatisticsHook(interval=2), runner, [[HALF_DEAD], [-HALF_DEAD], [HALF_DEAD]])
    assert table(runner)[0]['positive_share'] == 5 / 8
    assert runner.model['conv'].sign_observer is None


def test_all_levels_of_a_pyramid_and_all_samples_count(runner):
    """Channel 0 is +1 at one level and -1 at the other, so it is not dead."""
    hook = BinaryStatisticsHook(interval=1)
    run_epoch(hook, runner, [[HALF_DEAD, -1 - HALF_DEAD[..., :2]]])
    row = table(runner)[0]
    assert (row['positive_share'], row['dead_channels']) == (6 / 12, 0)
    run_epoch(hook, runner, [[HALF_DEAD], [-1 - HALF_DEAD]])
    assert table(runner)[1]['dead_channels'] == 0


def test_every_epoch_starts_anew(runner):
    hook = BinaryStatisticsHook()
    run_epoch(hook, runner, [[HALF_DEAD]])
    run_epoch(hook, runner, [[-1 - HALF_DEAD]])
    assert [row['epoch'] for row in table(runner)] == [1, 2]
    assert [row['dead_channels'] for row in table(runner)] == [1, 1]


def test_training_that_counts_iterations_reports_before_it_evaluates(runner):
    hook = BinaryStatisticsHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    runner.model['conv'](HALF_DEAD)
    hook.after_train_iter(runner, 0)
    runner.epoch, runner.iter = 0, 7
    for _ in range(2):
        hook.before_val_epoch(runner)
    assert [(row['epoch'], row['iteration'], row['positive_share']) for row in table(runner)] == [(0, 7, 5 / 8)]


def test_averaged_weights_of_the_validation_are_not_looked_at():
    assert get_priority(BinaryStatisticsHook.priority) < get_priority(EMAHook.priority)


def test_a_wrapped_model(runner):
    wrapped = nn.parallel.DataParallel(runner.model)
    names = BinaryStatisticsHook._layers(SimpleNamespace(model=wrapped))
    assert list(names) == ['conv']


def test_a_network_without_binary_layers(runner, tmp_path):
    runner.model = nn.ModuleDict(dict(conv=nn.Conv2d(2, 3, 1)))
    run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]])
    assert not list(tmp_path.iterdir())


def test_misuse():
    with pytest.raises(ValueError, match='interval=0: give the number of iterations'):
        BinaryStatisticsHook(interval=0)


def test_an_observer_that_was_there_before_sees_every_iteration(runner):
    seen = []
    runner.model['conv'].sign_observer = seen.append
    run_epoch(BinaryStatisticsHook(interval=2), runner, [[HALF_DEAD]] * 3)
    assert len(seen) == 3
    assert runner.model['conv'].sign_observer == seen.append
    assert table(runner)[0]['positive_share'] == 5 / 8


def test_flips_are_those_since_the_last_report(runner):
    hook, weight = BinaryStatisticsHook(), runner.model['conv'].weight
    run_epoch(hook, runner, [[HALF_DEAD]], lambda: weight.data.view(-1)[:2].neg_())
    run_epoch(hook, runner, [[HALF_DEAD]])
    assert [row['weight_flips'] for row in table(runner)] == [2, 0]


@pytest.mark.parametrize(('x', 'share'), [(HALF_DEAD.abs(), '1.000'), (-1 - HALF_DEAD.abs(), '0.000')])
def test_a_layer_that_dies_on_either_side_gets_a_warning(runner, caplog, x, share):
    run_epoch(BinaryStatisticsHook(), runner, [[x]])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f'1 of 1 binary layers are dying, their share of +1 lies outside 0.02-0.98: conv ({share})']


def test_only_the_first_process_writes(runner, tmp_path, monkeypatch):
    monkeypatch.setattr('mmgroupnet.engine.hooks.binary_statistics_hook.is_main_process', lambda: False)
    run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]])
    assert not list(tmp_path.iterdir())


def test_a_layer_that_did_not_run_is_left_out(runner):
    runner.model['idle'] = BinaryConv2d(2, 3, 1)
    run_epoch(BinaryStatisticsHook(), runner, [[HALF_DEAD]])
    assert [row['layer'] for row in table(runner)] == ['conv']
    run_epoch(BinaryStatisticsHook(), runner, [[]])  # no layer ran
    assert len(table(runner)) == 1
