"""A training run of the command line."""

import torch
from mmengine.config import Config
from torch import nn

from mmgroupnet.engine.checkpoint import find_resumable, is_local, read_checkpoint
from mmgroupnet.engine.data import check_data
from mmgroupnet.engine.errors import UserError
from mmgroupnet.engine.launch import build_runner


def run_training(cfg: Config, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None) -> nn.Module:
    """Checks what can be checked beforehand, then trains.

    Args:
        cfg: A checked config with ``work_dir`` and ``launcher``; changed in place.
        amp: Train in automatic mixed precision. Default: False.
        auto_scale_lr: Scale the learning rate by the batch size of all processes. Default: False.
        resume: Checkpoint to go on from, or 'auto' for the last good one in the work directory, if there is one.
            Default: None.

    Returns:
        The trained model.

    Raises:
        UserError: If an option does not fit the config or the machine, data is missing, a checkpoint does not fit, or a
            loss is no number.
    """
    if amp:
        if not torch.cuda.is_available():
            raise UserError('--amp needs a GPU')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ['train_dataloader', 'val_dataloader'])
    found = find_resumable(cfg.work_dir) if resume == 'auto' else resume
    cfg.resume = found is not None
    cfg.load_from = found or cfg.get('load_from')
    if cfg.load_from and is_local(cfg.load_from):
        read_checkpoint(cfg.load_from)
    return build_runner(cfg).train()
