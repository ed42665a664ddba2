"""Reports which tensors of a checkpoint of another architecture are loaded, or refuses it."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner

from mmgroupnet.checkpoints.match import check_state_dict, describe_mismatch, load_what_fits
from mmgroupnet.checkpoints.read import is_packed, weights_of
from mmgroupnet.converters import binarization_of
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Checks which weights of a checkpoint the model loads.

    mmengine loads the tensors that fit, logs the rest as a warning and goes on with random weights.

    - The checkpoint in ``load_from`` may have another head: a table lists the taken, dropped and new tensors. A
      checkpoint without a fitting tensor is refused.
    - A checkpoint to resume from or to test has to hold exactly the model's weights, otherwise it is refused.

    The hook does not check ``init_cfg=dict(type='Pretrained')``.
    """

    priority = 'VERY_LOW'  # After hooks that change the checkpoint, such as EMAHook.

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares names and shapes; if they differ, tries to load them into the model.

        Args:
            runner: The runner.
            checkpoint: The checkpoint, before it is loaded into the model.

        Raises:
            UserError: The message lists missing, unexpected and misshaped tensors.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if not describe_mismatch(model, weights_of(checkpoint)):
            return
        source = runner.cfg.get('load_from') or 'to resume from'
        transfer = None if is_packed(checkpoint) else load_what_fits(model, checkpoint)
        if transfer is not None and transfer.is_whole():
            return
        # In a runner that only tests, the optimizer is still a config.
        starts_training = isinstance(runner.optim_wrapper, BaseOptimWrapper) and not runner._resume
        if transfer is None or not transfer.taken or not starts_training:
            check_state_dict(model, checkpoint, source)  # raises
            return
        advice = ''
        report = binarization_of(model)
        if report is not None and not set(report.new_tensors).intersection(transfer.taken):
            advice = (
                '\nThe model was made binary. To start from the weights of the float model, leave load_from out and '
                f"give the float model init_cfg=dict(type='Pretrained', checkpoint={source!r})"
            )
        print_log(
            f'load_from={source} is of another architecture than the config. Tensors by part of the model:\n'
            f'{transfer.table()}{advice}',
            logger='current',
            level=logging.WARNING,
        )
