"""Writes checkpoints that torch's safe mode reads without an allow-list."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.checkpoints.write import as_history, as_plain
from mmgroupnet.registry import HOOKS

# The keys under which mmengine and its hooks store a run. Weights and optimizer states are tensors, or belong to a
# class.
_PARTS = ('meta', 'message_hub', 'param_schedulers')


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Lets every program read the checkpoints of a run in torch's safe mode.

    mmengine stores the history of the losses as objects of its own class, and a best score as a scalar of numpy.
    torch's safe mode refuses both unless they are allow-listed, and an inferencer may open the file before our code is
    imported. This hook stores tensors and numbers instead, and restores the history when a run resumes. A run without
    the hook can resume from such a file, too; its log then averages only the losses from there on.
    """

    priority = 'LOWEST'  # After hooks that store their own entries.

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces objects in the checkpoint by plain values before it is written.

        Args:
            runner: The runner.
            checkpoint: The checkpoint; the runner's own objects are not changed.
        """
        for part in _PARTS:
            if part in checkpoint:
                checkpoint[part] = as_plain(checkpoint[part])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restores the histories after a checkpoint was read.

        Args:
            runner: The runner.
            checkpoint: The checkpoint, before the run resumes from it.
        """
        hub = checkpoint.get('message_hub') or {}
        if 'log_scalars' in hub:
            hub['log_scalars'] = {name: as_history(value) for name, value in hub['log_scalars'].items()}
