"""Writes checkpoints that torch's safe mode reads by itself."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.checkpoints.write import as_history, as_plain
from mmgroupnet.registry import HOOKS

# What mmengine and its hooks store of a run; weights and states of optimizers are tensors, or a class's own business.
_PARTS = ('meta', 'message_hub', 'param_schedulers')


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Lets every program read the checkpoints of a run in torch's safe mode.

    mmengine stores the history of the losses as objects of a class of its own, and a best score as a scalar of numpy.
    torch's safe mode refuses both unless they are allow-listed, which they are not in an inferencer that opens the file
    before anything of ours is imported. This hook has them written as tensors and numbers, and restores the history
    where a run goes on. A run without it can go on from such a file, too: its log then averages the losses from there
    on alone.
    """

    priority = 'LOWEST'  # After hooks that store something of their own.

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Makes what is about to be written plain.

        Args:
            runner: The runner.
            checkpoint: What is written; the runner's own objects are left as they are.
        """
        for part in _PARTS:
            if part in checkpoint:
                checkpoint[part] = as_plain(checkpoint[part])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Makes histories of what was read.

        Args:
            runner: The runner.
            checkpoint: What was read, before the run takes it up.
        """
        hub = checkpoint.get('message_hub') or {}
        if 'log_scalars' in hub:
            hub['log_scalars'] = {name: as_history(value) for name, value in hub['log_scalars'].items()}
