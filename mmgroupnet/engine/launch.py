"""From a checked config to a Runner: distribution with or without GPUs, and guards for every run of the tools."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import distributed, nn

from mmgroupnet.checkpoints.read import is_local
from mmgroupnet.checkpoints.write import ATOMIC_BACKEND
from mmgroupnet.errors import UserError
from mmgroupnet.layers import guard_foreign_code

# Checked in every run, also of a stock config that knows nothing of them.
_GUARDS = (
    'mmgroupnet.CheckpointMatchHook',
    'mmgroupnet.InvalidLossHook',
    'mmgroupnet.LabelRangeHook',
    'mmgroupnet.EpochSeedHook',
    'mmgroupnet.PlainCheckpointHook',
)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """Distributed training without GPUs.

    mmengine hands every wrapper the GPU's index, which a model on the CPU refuses, and synchronised batch norms refuse
    the CPU altogether: they become ordinary ones, each process with the statistics of its own images.

    Args:
        module: The model.
        kwargs: As for ``MMDistributedDataParallel``; ``device_ids`` is ignored.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        if any(
            isinstance(layer, nn.SyncBatchNorm) or type(layer).__module__ == 'mmcv.ops.sync_bn'
            for layer in module.modules()
        ):
            print_log(
                'No GPU: synchronised batch norms become ordinary ones, with the statistics of each process alone',
                logger='current',
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, **{**kwargs, 'device_ids': None})


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on the CPU, where mmengine's ``AmpOptimWrapper`` refuses to run. There is no loss to
    scale: bfloat16 has the range of float32."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass.

        Args:
            model: The model.
        """
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def setup_distribution(cfg: Config) -> None:
    """Prepares a run that a launcher started.

    With GPUs mmengine does it alone (nccl). Without, it would touch CUDA: the process group (gloo) is made here, before
    the Runner, and the model's wrapper is set.

    Args:
        cfg: The config, with ``launcher``; ``model_wrapper_cfg`` is set where there is no GPU.

    Raises:
        UserError: If there are fewer GPUs than processes, or another launcher than 'pytorch' is used without GPUs.
    """
    if cfg.launcher == 'none':
        return
    if torch.cuda.is_available():
        if cfg.launcher == 'pytorch' and int(os.environ['LOCAL_RANK']) >= torch.cuda.device_count():
            raise UserError(
                f'process {os.environ["LOCAL_RANK"]} of this machine finds {torch.cuda.device_count()} GPUs: start one '
                'process per GPU'
            )
        return
    if cfg.launcher != 'pytorch':
        raise UserError(
            f'--launcher {cfg.launcher} needs GPUs; without them use --launcher pytorch (tools/dist_train.sh)'
        )
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))
    cfg.model_wrapper_cfg = dict(
        broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
    )
    cfg.model_wrapper_cfg.type = CPUDistributedDataParallel.__name__


def add_guards(cfg: Config) -> None:
    """Adds the guard hooks and atomic checkpoint writing.

    These are hooks that check losses, masks and checkpoints and make epochs repeatable, and checkpoints written whole.
    """
    hooks = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = hooks + [dict(type=guard) for guard in _GUARDS if guard not in [hook['type'] for hook in hooks]]
    if not cfg.get('default_hooks'):
        cfg.default_hooks = {}
    if 'checkpoint' not in cfg.default_hooks:
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint and is_local(checkpoint.get('out_dir') or '') and not (
        checkpoint.get('backend_args') or checkpoint.get('file_client_args')
    ):
        checkpoint.backend_args = dict(backend=ATOMIC_BACKEND)
    train_dataloader = cfg.get('train_dataloader')
    if (
        train_dataloader
        and train_dataloader.get('persistent_workers')
        and cfg.get('randomness', {}).get('seed') is not None
    ):
        # Random streams of lasting workers run on from epoch to epoch; a resumed run could not take them up.
        print_log(
            'A seed is given: workers of the training data start anew every epoch (persistent_workers=False)',
            logger='current',
        )
        train_dataloader.persistent_workers = False


def stack_batches(cfg: Config) -> None:
    """Lets the workers of mmpretrain's data stack the images of a batch, as mmpretrain's own tools do.

    Images of classification have one size. mmengine's default, made for detection, sends them one by one, each in a
    block of shared memory of its own. A ``collate_fn`` of the config is kept.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))


def build_runner(cfg: Config) -> Runner:
    """Builds the Runner of a checked config, with the guards of :func:`add_guards` and batches of mmpretrain stacked.

    Raises:
        UserError: If a part of mmgroupnet refuses its arguments.
    """
    add_guards(cfg)
    stack_batches(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    guard_foreign_code(runner.model)
    return runner
