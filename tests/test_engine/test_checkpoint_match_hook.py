"""Checkpoints that match the model, and others."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmgroupnet import binarize
from mmgroupnet.engine.hooks import CheckpointMatchHook, checkpoint_match_hook
from mmgroupnet.errors import UserError


class Renamed(nn.Linear):
    """A layer that also loads files with the old name of its weights."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}kernel' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state_dict, prefix, *args)


def check(given, trains=False, resumes=False, model=None, **parts):
    """Runs the hook on a checkpoint, for a runner that tests, trains or resumes."""
    model = model or nn.Sequential(Renamed(2, 3), nn.ReLU(), nn.Linear(3, 4))
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)) if trains else dict(optimizer={})
    runner = SimpleNamespace(model=model, cfg=dict(load_from='old.pth'), optim_wrapper=optimizer, _resume=resumes)
    CheckpointMatchHook().after_load_checkpoint(runner, dict(state_dict=given, **parts))


WEIGHTS = {
    '0.weight': torch.ones(3, 2), '0.bias': torch.ones(3), '2.weight': torch.ones(4, 3), '2.bias': torch.ones(4)
}  # fmt: skip
OLD = {'module.0.kernel' if name == '0.weight' else name: value for name, value in WEIGHTS.items()}
OTHER_HEAD = {**OLD, '2.weight': torch.ones(7, 3), '2.bias': torch.ones(7), '3.scale': torch.ones(1)}


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint_match_hook, 'print_log', lambda text, logger, level: said.append(text))
    return said


@pytest.mark.parametrize('trains', [False, True])
def test_weights_that_the_model_renames_are_its_own(said, trains):
    check(WEIGHTS, trains)
    given = dict(OLD)
    check(given, trains)
    assert list(given) == list(OLD)  # unchanged, since mmengine loads them afterwards
    assert said == []


@pytest.mark.parametrize('run', [dict(), dict(trains=True, resumes=True)], ids=['test', 'resume'])
@pytest.mark.parametrize(
    'change',
    [{'2.bias': torch.ones(7)}, {'3.scale': torch.ones(1)}, {'module.0.kernel': None}],
    ids=['shape', 'unexpected', 'missing'],
)
def test_what_does_not_load_whole_is_neither_tested_nor_resumed(change, run):
    given = {name: value for name, value in {**OLD, **change}.items() if value is not None}
    with pytest.raises(UserError, match=r'^checkpoint old\.pth is of another architecture than the config'):
        check(given, **run)


def test_a_training_that_starts_from_another_head_says_what_it_takes(said):
    check(OTHER_HEAD, trains=True)
    assert said == [
        'load_from=old.pth is of another architecture than the config. Tensors by part of the model:\n'
        '| part | taken | dropped | new |\n'
        '| --- | --- | --- | --- |\n'
        '| 0 | 2 | 0 | 0 |\n'
        '| 2 | 0 | 2 | 2 |\n'
        '| 3 | 0 | 1 | 0 |\n'
        'of another shape: 2.weight (7, 3) instead of (4, 3), 2.bias (7,) instead of (4,)\n'
        'not in the model: 3.scale'
    ]


def test_weights_of_the_float_model_have_another_way_into_a_binary_one(said):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1))
    given = model.state_dict()
    check(given, trains=True, model=binarize(model, [dict(become='layerwise', names='1', num_bases=2)]))
    (text,) = said
    assert '| 0 | 2 | 0 | 0 |\n' in text and text.endswith(
        'The model was made binary. To start from the weights of the float model, leave load_from out and give the '
        "float model init_cfg=dict(type='Pretrained', checkpoint='old.pth')"
    )


def test_weights_of_a_binary_model_with_another_head_do_not(said):
    model = binarize(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)), [dict(become='binary', names='0')])
    given = {name: value for name, value in model.state_dict().items() if not name.startswith('1.')}
    check(given, trains=True, model=model)
    assert '| 1 | 0 | 0 | 2 |' in said[0] and 'made binary' not in said[0]


@pytest.mark.parametrize(
    ('given', 'parts'),
    [({'4.weight': torch.ones(2)}, {}), (OTHER_HEAD, dict(meta=dict(packed=dict(version=1))))],
    ids=['nothing', 'packed'],
)
def test_a_training_does_not_start_from(given, parts, said):
    with pytest.raises(UserError, match=r'^checkpoint old\.pth is of another architecture than the config'):
        check(given, trains=True, **parts)
    assert said == []


@pytest.mark.parametrize('width', [2, 5])
def test_what_is_compared_is_what_a_resumed_average_puts_in_its_place(width):
    """In a checkpoint with an EMA the averaged weights are in ``state_dict``; EMAHook swaps the two before loading. The
    hook must check the swapped weights."""
    model = nn.Sequential(nn.Linear(2, 3))
    runner = SimpleNamespace(model=model, cfg={}, optim_wrapper=None, _resume=True, _hooks=[], iter=0, epoch=0)
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
