"""The schedule of the error decay estimator."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.engine.hooks import ErrorDecayHook
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d


def error_decay_conv() -> BinaryConv2d:
    return BinaryConv2d(
        1,
        2,
        1,
        activation=dict(type='mmgroupnet.ErrorDecaySign'),
        weight=dict(type='mmgroupnet.BalancedWeight', t_max=5.0),
    )


def progress_of(conv: BinaryConv2d) -> float:
    assert conv.activation.progress == conv.weight_quantizer.progress
    return conv.activation.progress


class Model(BaseModel):
    """Records the progress of its conv in every iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = error_decay_conv()
        self.seen: list[float] = []

    def forward(self, inputs, mode='loss'):
        self.seen.append(progress_of(self.conv))
        return dict(loss=self.conv(inputs).sum())


def run(folder, train_cfg, **options) -> list[float]:
    """Runs a training with two batches per epoch; returns the progress in each iteration."""
    runner = Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=torch.utils.data.DataLoader([dict(inputs=torch.ones(1, 2, 2))] * 4, batch_size=2),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='mmgroupnet.ErrorDecayHook')],
        experiment_name=f'{folder.name}_{len(options)}',
        **options,
    )
    return runner.train().seen


def test_by_epoch(tmp_path):
    assert run(tmp_path, dict(by_epoch=True, max_epochs=3)) == [0, 0, 0.5, 0.5, 1, 1]


def test_by_iteration(tmp_path):
    assert run(tmp_path, dict(by_epoch=False, max_iters=5)) == [0, 0.25, 0.5, 0.75, 1]


def test_within_a_single_epoch(tmp_path):
    assert run(tmp_path, dict(by_epoch=True, max_epochs=1)) == [0, 1]


def test_resumed_training_goes_on(tmp_path):
    run(tmp_path, dict(by_epoch=True, max_epochs=2))
    seen = run(tmp_path, dict(by_epoch=True, max_epochs=5), load_from=str(tmp_path / 'epoch_2.pth'), resume=True)
    assert seen == [0.5, 0.5, 0.75, 0.75, 1, 1]


@pytest.mark.parametrize('iteration, progress', [(0, 0), (3, 1)])
def test_estimators_under_a_wrapper(iteration, progress):
    conv, hook = error_decay_conv(), ErrorDecayHook()
    runner = SimpleNamespace(model=nn.DataParallel(conv), epoch=0, max_epochs=1, iter=iteration, max_iters=4)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert progress_of(conv) == progress


def test_a_single_iteration():
    conv, hook = error_decay_conv(), ErrorDecayHook()
    runner = SimpleNamespace(model=conv, epoch=0, max_epochs=1, iter=0, max_iters=1)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert progress_of(conv) == 0


def test_a_model_without_estimators_is_refused():
    runner = SimpleNamespace(model=BinaryConv2d(1, 1, 1))
    with pytest.raises(UserError, match='ErrorDecayHook: no quantizer of the model has the error decay estimator'):
        ErrorDecayHook().before_train(runner)
