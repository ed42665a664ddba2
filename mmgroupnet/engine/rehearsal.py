"""A rehearsal runs every stage of a training once before the first step, without side effects."""

from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmgroupnet.checkpoints.read import is_local
from mmgroupnet.engine.launch import synchronised_norms
from mmgroupnet.engine.trial.batches import read_evaluation_batch, read_training_batches
from mmgroupnet.engine.trial.checkpoint import check_save_best, try_checkpoint
from mmgroupnet.engine.trial.isolation import PROGRESS, alone, copy_model, isolated, without_step
from mmgroupnet.engine.trial.metrics import as_samples, is_one_batch_enough, try_metric
from mmgroupnet.engine.trial.stages import NotTriedError, Stages, doubt_of_hooks
from mmgroupnet.errors import UserError


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _train(stages: Stages, runner: Runner, model: nn.Module) -> None:
    """A batch forward and backward, and another as small as the last one of an epoch."""
    loop = runner.train_loop
    if type(loop).run_iter not in (EpochBasedTrainLoop.run_iter, IterBasedTrainLoop.run_iter):
        stages.leave_out('training', f'{type(loop).__name__} has steps of its own')
        return
    runner.logger.info(f'{PROGRESS} before the first step: a batch of training')
    hint = 'Look at train_dataloader and its dataset'
    args = (loop, runner.cfg.train_dataloader, runner.seed)
    batches: Any = stages.take('reading training data', hint, read_training_batches, *args) or []
    doubt = doubt_of_hooks(runner, 'before_train_epoch', 'before_train_iter')
    for batch, stage, hint in zip(
        batches,
        ('a training batch', 'a training batch as small as the last one'),
        (
            "Compare the model, above all its heads' classes and channels, with train_dataloader.dataset",
            'Give train_dataloader drop_last=True or another batch_size',
        ),
        strict=False,
    ):
        with alone():
            stages.take(stage, hint, model.train_step, batch, without_step(runner.optim_wrapper), doubt=doubt)


def _evaluate(
    stages: Stages, runner: Runner, kind: str, model: nn.Module, loop: ValLoop | TestLoop, doubt: str
) -> None:
    """Runs a batch of validation (kind ``'val'``) or test through model and metrics."""
    stage = {'val': 'validation', 'test': 'test'}[kind]
    runner.logger.info(f'{PROGRESS}: a batch of {stage}')
    loader = f'{kind}_dataloader'
    batch = stages.take(
        f'reading {stage} data',
        f'Look at {loader} and its dataset',
        read_evaluation_batch,
        loop.dataloader,
        runner.cfg[loader],
        runner.seed,
        doubt=doubt,
    )
    if batch is None:
        return

    def predict() -> list[dict]:
        with alone(), torch.no_grad(), autocast(enabled=loop.fp16):
            return as_samples(getattr(model, f'{kind}_step')(batch))

    hint = f'Look at model.test_cfg and at what {loader}.dataset.pipeline packs, its meta_keys among it'
    samples: Any = stages.take(f'a {stage} batch', hint, predict, doubt=doubt)
    if samples is None:
        return
    if type(loop.evaluator) is not Evaluator:
        stages.leave_out(f'{kind}_evaluator', f'{type(loop.evaluator).__name__} may need more than one batch')
        return
    hint = f'Compare {kind}_evaluator with {loader}.dataset and with the predictions of the model'
    size = len(loop.dataloader.dataset)
    with alone():
        metrics = [
            stages.take(
                f'{stage} by {type(metric).__name__}', hint, try_metric, metric, samples, batch, size, doubt=doubt
            )
            for metric in loop.evaluator.metrics
        ]
    chosen_by = getattr(_checkpoint_hook(runner), 'save_best', None)
    if kind == 'val' and chosen_by and all(metrics):  # A metric without values here may have some in the run.
        hint = 'Look at default_hooks.checkpoint'
        if len(samples) < size and not all(map(is_one_batch_enough, loop.evaluator.metrics)):
            doubt = 'a metric may give more values after the whole set'
        stages.take('choosing the best checkpoint', hint, check_save_best, chosen_by, metrics, doubt=doubt)


def _validate(stages: Stages, runner: Runner, model: nn.Module) -> None:
    loop, train_loop = runner.val_loop, runner.train_loop
    end = train_loop.max_epochs if isinstance(train_loop, EpochBasedTrainLoop) else train_loop.max_iters
    if loop is None or getattr(train_loop, 'val_begin', 0) > end:  # The run never validates.
        return
    if (type(loop).run, type(loop).run_iter) != (ValLoop.run, ValLoop.run_iter):
        stages.leave_out('validation', f'{type(loop).__name__} has steps of its own')
        return
    doubt = doubt_of_hooks(runner, 'before_val', 'before_val_epoch', 'before_val_iter')
    _evaluate(stages, runner, 'val', model, loop, doubt)


def _test(stages: Stages, runner: Runner, model: nn.Module) -> None:
    cfg = runner.cfg
    data, validated = cfg.get('test_dataloader'), cfg.get('val_dataloader') or {}
    if not data or (data.dataset == validated.get('dataset') and cfg.test_evaluator == cfg.get('val_evaluator')):
        return
    doubt = 'it does not need the test set'
    hint = 'Look at test_dataloader'
    with alone():
        loop: Any = stages.take('building the test set', hint, runner.build_test_loop, cfg.test_cfg, doubt=doubt)
    if loop is None:
        return
    if (type(loop).run, type(loop).run_iter) != (TestLoop.run, TestLoop.run_iter):
        stages.leave_out('test', f'{type(loop).__name__} has steps of its own')
        return
    _evaluate(stages, runner, 'test', model, loop, doubt)


def _rehearse(runner: Runner, model: nn.Module) -> Stages:
    """Runs all stages in this process.

    Raises:
        UserError: If one of them fails.
    """
    stages = Stages()
    with isolated(runner):
        try:
            copied = copy_model(model)
        except NotTriedError as error:
            stages.leave_out('training and validation', str(error))
        else:
            copied.train()
            if get_world_size() > 1:  # They synchronise, but the rehearsal runs in each process separately.
                for norm in synchronised_norms(copied):
                    norm.eval()
            _train(stages, runner, copied)
            copied.eval()
            _validate(stages, runner, copied)
            _test(stages, runner, copied)
            del copied  # Before the memory is counted again.
        hook = _checkpoint_hook(runner)
        if hook is not None and is_main_process() and is_local(hook.out_dir):
            runner.logger.info(f'{PROGRESS}: a checkpoint')
            hint = f'Look at the free space and the rights of {hook.out_dir}'
            stages.take('writing a checkpoint', hint, try_checkpoint, runner, hook)
    return stages


class RehearsalHook(Hook):
    """Tries a batch of training, validation and test, and a checkpoint, before the first step, so that errors come now
    and not after an epoch.

    It uses copies of the run's parts and batches of the run's own data, so random numbers, weights, losses and logs of
    the run do not change. A failure in a part that the run needs ends the run. A failure that the rehearsal itself may
    cause, such as that of a custom metric that needs the whole set, is a warning. The log names what cannot be tried.
    """

    priority = 'LOWEST'  # After the preparations of other hooks.

    def before_train(self, runner: Runner) -> None:
        """Rehearses.

        Args:
            runner: The run.

        Raises:
            UserError: In every process; the message names the failed stage, the error, and what to look at.
        """
        if 0 < runner.max_iters <= runner.iter:
            return  # The run was resumed at its end.
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        if not isinstance(model, nn.Module) or any(is_model_wrapper(module) for module in model.modules()):
            runner.logger.info(f'No rehearsal: it cannot copy a model inside a {type(runner.model).__name__}')
            return
        stages, failure = Stages(), None
        try:
            stages = _rehearse(runner, model)
        except UserError as error:
            failure = error
        try:
            failures = all_gather_object(str(failure or ''))
        except RuntimeError:
            if not failure:  # A GPU does not recover from a kernel's error.
                raise
        if failure:
            raise failure
        for rank, line in enumerate(failures):
            if line:
                raise UserError(f'in process {rank}, {line}')
        stages.log_remarks(runner.logger)
        runner.logger.info(f'{PROGRESS} passed: {", ".join(stages.passed)}')
