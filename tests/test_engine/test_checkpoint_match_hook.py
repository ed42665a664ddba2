"""Checkpoints that are, and are not, of the model."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.engine.hooks import CheckpointMatchHook
from mmgroupnet.errors import UserError


class Renamed(nn.Linear):
    """A stock model that takes files in which its weights have older names."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}kernel' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state_dict, prefix, *args)


def check(given):
    runner = SimpleNamespace(model=nn.Sequential(Renamed(2, 3)), cfg=dict(load_from='old.pth'))
    CheckpointMatchHook().after_load_checkpoint(runner, dict(state_dict=given))


def test_weights_that_the_model_renames_are_its_own():
    check({'0.weight': torch.ones(3, 2), '0.bias': torch.ones(3)})
    old = {'module.0.kernel': torch.ones(3, 2), '0.bias': torch.ones(3)}
    check(old)
    assert list(old) == ['module.0.kernel', '0.bias']  # mmengine has still to load them.


@pytest.mark.parametrize(
    'change',
    [{'0.kernel': torch.ones(2, 2)}, {'1.weight': torch.ones(1)}, {'0.kernel': None}],
    ids=['shape', 'unexpected', 'missing'],
)
def test_what_does_not_load_whole_is_refused(change):
    given = {'0.kernel': torch.ones(3, 2), '0.bias': torch.ones(3), **change}
    with pytest.raises(UserError, match=r'old\.pth is of another architecture .*give model\.init_cfg=dict\(type='):
        check({name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize('width', [2, 5])
def test_what_is_compared_is_what_a_resumed_average_puts_in_its_place(width):
    """A checkpoint with an average holds that as its weights; EMAHook swaps both back before they are loaded."""
    model = nn.Sequential(nn.Linear(2, 3))
    runner = SimpleNamespace(model=model, cfg={}, _resume=True, _hooks=[], iter=0, epoch=0)
    average = EMAHook()
    for hook in (CheckpointMatchHook(), average):
        Runner.register_hook(runner, hook)
    average.before_run(runner)
    checkpoint = dict(
        state_dict={'0.weight': torch.zeros(3, 2), '0.bias': torch.zeros(3)},
        ema_state_dict={
            'steps': torch.tensor(1), 'module.0.weight': torch.ones(3, width), 'module.0.bias': torch.ones(3)
        },
    )  # fmt: skip
    if width == 2:
        Runner.call_hook(runner, 'after_load_checkpoint', checkpoint=checkpoint)
        assert torch.equal(checkpoint['state_dict']['0.weight'], torch.ones(3, 2))
    else:
        with pytest.raises(UserError, match=r'is of another architecture .*of another shape: 0\.weight'):
            Runner.call_hook(runner, 'after_load_checkpoint', checkpoint=checkpoint)
