"""Stops training at the first loss that is NaN or infinite."""

import math

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.checkpoints.read import is_local, last_finite
from mmgroupnet.errors import UserError
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops training if a loss is NaN or infinite.

    The weights are spoilt by then, so further training would be wasted. The hook checks every iteration; this costs
    nothing, since mmengine reads the losses for its log in every iteration anyway.
    """

    priority = 'VERY_HIGH'  # Before a checkpoint of these weights is written.

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Checks the losses.

        Args:
            runner: The runner.
            batch_idx: Index of the batch in the epoch.
            data_batch: Not used.
            outputs: The losses by name.

        Raises:
            UserError: The message names the iteration, the invalid losses, and the last good checkpoint.
        """
        losses = {name: float(value.detach()) for name, value in (outputs or {}).items() if 'loss' in name}
        invalid = [f'{name}={value}' for name, value in losses.items() if not math.isfinite(value)]
        if invalid:
            last_good = _last_good(runner.message_hub.get_info('last_ckpt'))
            raise UserError(
                f'training stopped at iteration {runner.iter + 1} (epoch {runner.epoch + 1}, batch {batch_idx + 1}): '
                f'{", ".join(invalid)}; {last_good}. Lower the learning rate or clip the gradients '
                '(optim_wrapper.clip_grad)'
            )


def _last_good(newest: str | None) -> str:
    """The last good checkpoint of a run, in words."""
    if newest and not is_local(str(newest)):
        return f'the last checkpoint is {newest}, whose weights were not checked'
    good = last_finite(newest)
    return f'the last good checkpoint is {good}' if good else 'this run has saved no good checkpoint'
