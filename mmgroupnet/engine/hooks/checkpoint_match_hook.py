"""Refuses a checkpoint of another architecture."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from mmgroupnet.engine.checkpoint import check_state_dict
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Stops where ``load_from``, ``--resume`` or a test's checkpoint does not hold exactly the model's weights.

    mmengine alone loads what fits, logs the rest as a warning and goes on with random weights.
    ``init_cfg=dict(type='Pretrained')`` is not concerned.
    """

    priority = 'VERY_LOW'  # After hooks that change the checkpoint, such as EMAHook's.

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares names and shapes.

        Args:
            runner: The runner.
            checkpoint: What was read, before it is put into the model.

        Raises:
            UserError: Listing what is missing, unexpected or of another shape.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_state_dict(model, checkpoint, source=runner.cfg.get('load_from') or 'to resume from')
