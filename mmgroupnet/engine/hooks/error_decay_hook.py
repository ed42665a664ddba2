"""Moves the error decay estimator of IR-Net along its schedule."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.errors import UserError
from mmgroupnet.quantizers import ErrorDecay
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class ErrorDecayHook(Hook):
    """Sets ``progress`` of every error decay estimator of the model: 0 in the first epoch, 1 in the last one.

    If training has one epoch or counts iterations, the progress goes from 0 in the first iteration to 1 in the last
    one. It depends only on the epoch or iteration, so resumed training has the right value.

    Source: Qin et al., IR-Net, CVPR 2020, section 3.3; see :class:`mmgroupnet.quantizers.ErrorDecay`.

    Raises:
        UserError: If no quantizer of the model has the estimator.
    """

    def __init__(self) -> None:
        self._estimators: list[nn.Module] = []

    def before_train(self, runner: Runner) -> None:
        """Finds the estimators, also inside model wrappers.

        Args:
            runner: The runner.
        """
        self._estimators = [module for module in runner.model.modules() if isinstance(module, ErrorDecay)]
        if not self._estimators:
            raise UserError(
                'ErrorDecayHook: no quantizer of the model has the error decay estimator: give '
                "binary_cfg=dict(activation=dict(type='mmgroupnet.ErrorDecaySign')) or "
                "weight=dict(type='mmgroupnet.BalancedWeight'), or leave out the hook"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Sets the progress.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
        """
        # Loops that count iterations have one epoch.
        step, steps = (runner.epoch, runner.max_epochs) if runner.max_epochs > 1 else (runner.iter, runner.max_iters)
        for estimator in self._estimators:
            estimator.progress = step / max(1, steps - 1)
