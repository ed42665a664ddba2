"""Says what is loaded of a checkpoint of another architecture, or refuses it."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner

from mmgroupnet.checkpoints.match import check_state_dict, describe_mismatch, load_what_fits
from mmgroupnet.checkpoints.read import is_packed, weights_of
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Watches which weights of a checkpoint reach the model.

    mmengine loads what fits, logs the rest as a warning and goes on with random weights.

    - What ``load_from`` starts a training from may have another head: a table says what of it is taken, what is
      dropped, and what is new. A checkpoint of which nothing is taken is refused.
    - A checkpoint that is resumed from or tested has to hold exactly the model's weights, or is refused.

    ``init_cfg=dict(type='Pretrained')`` is not concerned.
    """

    priority = 'VERY_LOW'  # After hooks that change the checkpoint, such as EMAHook's.

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares names and shapes, and where they differ asks the model.

        Args:
            runner: The runner.
            checkpoint: What was read, before it is put into the model.

        Raises:
            UserError: Listing what is missing, unexpected or of another shape.
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
        # A runner that only tests leaves its optimizer a config.
        starts_training = isinstance(runner.optim_wrapper, BaseOptimWrapper) and not runner._resume
        if transfer is None or not transfer.taken or not starts_training:
            check_state_dict(model, checkpoint, source)  # raises
            return
        print_log(
            f'load_from={source} is of another architecture than the config. Tensors by part of the model:\n'
            f'{transfer.table()}',
            logger='current',
            level=logging.WARNING,
        )
