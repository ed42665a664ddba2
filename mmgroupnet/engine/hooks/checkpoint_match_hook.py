"""Refuses a checkpoint of another architecture."""

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.read import is_packed, weights_of
from mmgroupnet.errors import UserError
from mmgroupnet.registry import HOOKS


def _loads_whole(model: nn.Module, checkpoint: Mapping) -> bool:
    """Whether a model that renames or reshapes weights while it loads them takes all of a checkpoint."""
    try:
        result = model.load_state_dict(weights_of(checkpoint), strict=False)
    except (RuntimeError, ValueError):  # of another shape; packed where the model is float, or the other way round
        return False
    return not result.unexpected_keys and all(key.endswith('num_batches_tracked') for key in result.missing_keys)


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Stops where ``load_from``, ``--resume`` or a test's checkpoint does not hold exactly the model's weights.

    mmengine alone loads what fits, logs the rest as a warning and goes on with random weights.
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
        try:
            check_state_dict(model, checkpoint, source=runner.cfg.get('load_from') or 'to resume from')
        except UserError as error:
            if _loads_whole(model, checkpoint):
                return
            if is_packed(checkpoint):
                raise
            raise UserError(
                f"{error}. To train from what fits of it, give model.init_cfg=dict(type='Pretrained', checkpoint=...) "
                'in place of load_from'
            ) from error
