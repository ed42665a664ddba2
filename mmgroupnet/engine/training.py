"""A training run of the command line."""

import logging

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.pretrained import fetch_pretrained
from mmgroupnet.checkpoints.read import find_resumable, is_local, is_packed, read_checkpoint
from mmgroupnet.engine.binarize_option import binarize_config
from mmgroupnet.engine.checks import check_built_parts
from mmgroupnet.engine.data import check_data
from mmgroupnet.engine.launch import build_runner, check_mixed_precision, use_mixed_precision
from mmgroupnet.engine.model_report import describe_model
from mmgroupnet.engine.rehearsal import RehearsalHook
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.model_configs import is_binarized_config, is_packed_config
from mmgroupnet.ops import kernels
from mmgroupnet.ops.passes.choice import wants_triton


def read_trainable(path: str) -> dict:
    """Reads a checkpoint to resume from, without its tensors' data.

    Raises:
        UserError: If it cannot be read, or is packed and so has no latent weights.
    """
    checkpoint = read_checkpoint(path)
    if is_packed(checkpoint):
        raise UserError(f'checkpoint {path} is packed and cannot be trained: give the one that it was packed from')
    return checkpoint


def apply_backbone_checkpoint(cfg: Config) -> None:
    """Initialises the backbone from the classification checkpoint in a config's ``backbone_checkpoint``.

    If it is None, a warning says what to expect; a config without that setting is not changed.

    Args:
        cfg: The config; ``model.backbone.init_cfg`` is set.

    Raises:
        UserError: If the checkpoint does not hold exactly the weights of this backbone, under ``backbone.``.
    """
    if 'backbone_checkpoint' not in cfg:
        return
    source = cfg.backbone_checkpoint
    if source is None:
        print_log(
            'backbone_checkpoint=None: the backbone starts from random weights. Published figures are of backbones '
            'trained on ImageNet, a short schedule from scratch will not reach them',
            logger='current',
            level=logging.WARNING,
        )
        return
    if is_local(source):
        checkpoint = read_trainable(source)
        weights = checkpoint.get('state_dict', checkpoint)
        prefix = 'backbone.'
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.device('meta'):
            backbone = MODELS.build(cfg.model.backbone)
        check_state_dict(backbone, weights, source)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=source, prefix='backbone.')


def load_kernels(model: nn.Module) -> None:
    """Loads the kernels that the model trains with: ours on a CPU, Triton's if they were requested.

    If they are missing or fail, one warning says so here: the rehearsal, which would load them next, hides the warnings
    of its trials.
    """
    binary = next((module for module in model.modules() if isinstance(module, BinaryConv2d)), None)
    if binary is None:
        return
    wants_triton(binary.weight.device, binary.weight.dtype)
    if binary.weight.device.type == 'cpu':
        kernels.library()


def run_training(
    cfg: Config,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    policy: list[dict] | None = None,
    rehearse: bool = True,
) -> nn.Module:
    """Checks what can be checked beforehand, then trains.

    Args:
        cfg: A checked config with ``work_dir`` and ``launcher``; changed in place.
        amp: Train in automatic mixed precision: float16 on a GPU, bfloat16 on a CPU. Default: False.
        auto_scale_lr: Scale the learning rate by the batch size of all processes. Default: False.
        resume: Checkpoint to resume from, or 'auto' for the last good one in the work directory, if there is one.
            Default: None, ``resume`` and ``load_from`` of the config decide.
        policy: Rules that make the model binary, see :func:`mmgroupnet.engine.binarize_option.load_policy`. Default:
            None.
        rehearse: Compares data sets, heads and evaluators before the first step, and tries a batch of each, see
            :class:`mmgroupnet.engine.rehearsal.RehearsalHook`. Default: True.

    Returns:
        The trained model.

    Raises:
        UserError: If an option does not fit the config or the machine, data is missing, a checkpoint does not fit or
            cannot be downloaded, the rehearsal fails, or a loss is not finite.
    """
    if is_packed_config(cfg):
        raise UserError("model=dict(type='mmgroupnet.Packed', ...) cannot be trained: give the model inside it")
    if amp:
        use_mixed_precision(cfg)
    else:
        check_mixed_precision(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ['train_dataloader', 'val_dataloader'])
    apply_backbone_checkpoint(cfg)
    fetch_pretrained(cfg)
    if policy is not None:
        binarize_config(cfg, policy)
    if resume is None and cfg.get('resume'):  # as mmengine reads it
        resume = cfg.get('load_from') or 'auto'
    found = find_resumable(cfg.work_dir) if resume == 'auto' else resume
    cfg.resume = found is not None
    cfg.load_from = found or cfg.get('load_from')
    if cfg.load_from and is_local(cfg.load_from):
        read_trainable(cfg.load_from)
    if cfg.get('data_preprocessor'):
        # The Runner reads it there, but inferencers of its files do not.
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    runner = build_runner(cfg)
    load_kernels(runner.model)
    if rehearse:
        check_built_parts(runner, ['train', 'val'])
        runner.register_hook(RehearsalHook())
    if is_binarized_config(cfg) and is_main_process():
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        print_log(describe_model(cfg, model), logger='current')
    return runner.train()
