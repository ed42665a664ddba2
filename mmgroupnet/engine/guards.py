"""Guards of a run: hooks that stop it before work is lost, and checkpoints that are written whole."""

from mmengine.config import Config
from mmengine.logging import print_log

from mmgroupnet.checkpoints.read import is_local
from mmgroupnet.checkpoints.write import ATOMIC_BACKEND
from mmgroupnet.model_configs import type_name

# The guard hooks by their names in default_hooks, as in the runtimes of configs/_base_.
GUARDS = dict(
    checkpoint_match='mmgroupnet.CheckpointMatchHook',
    invalid_loss='mmgroupnet.InvalidLossHook',
    label_range='mmgroupnet.LabelRangeHook',
    epoch_seed='mmgroupnet.EpochSeedHook',
    plain_checkpoint='mmgroupnet.PlainCheckpointHook',
)


def add_guards(cfg: Config) -> None:
    """Adds to a config the guards that it does not name: those of ``GUARDS``, and atomic writing of checkpoints.

    ``default_hooks.NAME=None`` leaves out one of them, ``default_hooks.checkpoint.backend_args=None`` the atomic
    writing (FlexibleRunner never has it), ``add_guards=False`` all that the config does not name.

    Args:
        cfg: The config, changed in place; it then lists all guards and has ``add_guards=False``.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    if cfg.get('add_guards', True):
        named = set(map(type_name, (*hooks.values(), *(cfg.get('custom_hooks') or ()))))
        for name, kind in GUARDS.items():
            if name not in hooks and kind.rpartition('.')[2] not in named:
                hooks[name] = dict(type=kind)
        checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
        # A custom checkpoint hook may not take backend_args.
        if type_name(checkpoint) == 'CheckpointHook' and not checkpoint.get('file_client_args'):
            checkpoint.setdefault('backend_args', dict(backend=ATOMIC_BACKEND))
    # mmengine accepts None only for its own default hooks.
    cfg.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name not in GUARDS}
    cfg.add_guards = False
    _write_elsewhere_as_there(cfg.default_hooks.get('checkpoint'))
    _restart_workers(cfg)


def _write_elsewhere_as_there(checkpoint: dict | None) -> None:
    """Atomic writing is for local files; checkpoints at ``s3://`` and the like are written by their own backend."""
    if isinstance(checkpoint, dict) and not is_local(checkpoint.get('out_dir') or ''):
        if (checkpoint.get('backend_args') or {}).get('backend') == ATOMIC_BACKEND:
            del checkpoint['backend_args']


def _restart_workers(cfg: Config) -> None:
    """Restarts workers every epoch if a seed is given: persistent workers would ignore the new seeds of an epoch, and a
    resumed run could not continue their random streams."""
    loader = cfg.get('train_dataloader')
    hooks = map(type_name, (*cfg.default_hooks.values(), *(cfg.get('custom_hooks') or ())))
    if (
        loader
        and loader.get('persistent_workers')
        and (cfg.get('randomness') or {}).get('seed') is not None
        and 'EpochSeedHook' in hooks
    ):
        print_log(
            'A seed is given: workers of the training data restart every epoch (persistent_workers=False)',
            logger='current',
        )
        loader.persistent_workers = False
