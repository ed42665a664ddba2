"""Tries to write a checkpoint of a run, and checks how the best one is chosen."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmgroupnet.checkpoints.read import read_checkpoint
from mmgroupnet.errors import UserError, nearest


def try_checkpoint(runner: Runner, hook: CheckpointHook) -> None:
    """Writes a checkpoint like a hook, reads it and removes it.

    Args:
        runner: The run.
        hook: The hook, with a folder on the disk.

    Raises:
        UserError: If the file is not readable.
        Exception: Of any type, if it cannot be written.
    """
    folder, name = Path(hook.out_dir), '.rehearsal.pth'
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        runner.save_checkpoint(
            hook.out_dir,
            name,
            hook.file_client_args,
            save_optimizer=hook.save_optimizer,
            save_param_scheduler=hook.save_param_scheduler,
            by_epoch=hook.by_epoch,
            backend_args=hook.backend_args,
            **hook.args,
        )
        read_checkpoint(folder / name)
    finally:
        for path in folder.glob(f'{name}*'):  # A backend may leave a partial file under another name.
            path.unlink()
        for path in new_folders:
            if path.exists():
                path.rmdir()


def check_save_best(chosen_by: Sequence[str], metrics: Sequence[dict]) -> None:
    """Checks that the metrics compute the values that choose the best checkpoint.

    Args:
        chosen_by: Names of these values, or 'auto'.
        metrics: The values of each metric.

    Raises:
        UserError: The message names the missing value.
    """
    names = [name for values in metrics for name in values]
    for name in chosen_by:
        if name not in ('auto', *names):
            raise UserError(f'save_best={name!r} is none of {", ".join(names)}{nearest(name, names)}')
