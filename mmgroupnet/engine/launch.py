"""From a checked config to a Runner: distribution and mixed precision with or without GPUs."""

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import distributed, nn

from mmgroupnet.engine.guards import add_guards
from mmgroupnet.engine.hooks import LabelRangeHook
from mmgroupnet.errors import UserError
from mmgroupnet.layers import guard_foreign_code
from mmgroupnet.model_configs import type_name

# The devices on which mmengine's AmpOptimWrapper runs.
_AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')


def synchronised_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model that synchronise statistics over all processes."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.SyncBatchNorm) or type(layer).__module__ == 'mmcv.ops.sync_bn'
    ]


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """Distributed training without GPUs.

    mmengine passes the GPU's index to every wrapper, which fails for a model on the CPU. Synchronised batch norms do
    not support the CPU: they become ordinary ones, and each process has the statistics of its own images.

    Args:
        module: The model.
        kwargs: As for ``MMDistributedDataParallel``; ``device_ids`` is ignored.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        if synchronised_norms(module):
            print_log(
                'No GPU: synchronised batch norms become ordinary ones, with separate statistics in each process',
                logger='current',
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, **{**kwargs, 'device_ids': None})


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on the CPU, where mmengine's ``AmpOptimWrapper`` refuses to run. The loss needs no
    scaling: bfloat16 has the range of float32."""

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

    With GPUs, mmengine does it by itself (nccl). Without GPUs it would use CUDA, so this function creates the process
    group (gloo) before the Runner, and sets the model's wrapper.

    Args:
        cfg: The config, with ``launcher``; without a GPU the model's wrapper is set (``model_wrapper_cfg``, or
            ``strategy.model_wrapper`` of FlexibleRunner), with the user's own options.

    Raises:
        UserError: If there are fewer GPUs than processes, or another launcher than 'pytorch' is used without GPUs.
    """
    if cfg.launcher == 'none':
        return
    if torch.cuda.is_available():
        if cfg.launcher == 'mpi':
            # mmengine takes the GPU from this variable and the device of its DistributedDataParallel from LOCAL_RANK.
            os.environ['LOCAL_RANK'] = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK', os.environ['LOCAL_RANK'])
        if cfg.launcher == 'pytorch' and int(os.environ['LOCAL_RANK']) >= torch.cuda.device_count():
            raise UserError(
                f'process {os.environ["LOCAL_RANK"]} of this machine finds {torch.cuda.device_count()} GPUs: start one '
                'process per GPU'
            )
        return
    if cfg.launcher != 'pytorch':
        raise UserError(f'--launcher {cfg.launcher} needs GPUs; without them use --launcher pytorch (torchrun)')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))
    default = dict(broadcast_buffers=False)  # mmengine's
    if not _is_flexible(cfg):
        default['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = _without_gpu(cfg.get('model_wrapper_cfg') or default)
        return
    cfg.strategy = cfg.get('strategy') or dict(type='DDPStrategy')
    if type_name(cfg.strategy) == 'DDPStrategy':
        cfg.strategy.model_wrapper = _without_gpu(cfg.strategy.get('model_wrapper') or default)


def _is_flexible(cfg: Config) -> bool:
    kind = cfg.get('runner_type')
    kind = RUNNERS.get(kind) if isinstance(kind, str) else kind
    return kind is not None and issubclass(kind, FlexibleRunner)


def _without_gpu(wrapper: Mapping) -> Mapping:
    """The config of a model's wrapper without a GPU; a wrapper of the user's own class is not changed."""
    if type_name({'type': MMDistributedDataParallel, **wrapper}) != MMDistributedDataParallel.__name__:
        return wrapper
    return dict(wrapper, type=CPUDistributedDataParallel.__name__)


def use_mixed_precision(cfg: Config) -> None:
    """``--amp``: float16 on a GPU, bfloat16 on a CPU.

    Args:
        cfg: The config; ``optim_wrapper`` is changed.

    Raises:
        UserError: If ``--amp`` cannot replace the optimizer's wrapper, or mmengine has no mixed precision for the
            device.
    """
    wrapper, device = cfg.optim_wrapper, get_device()
    kind = type_name({'type': OptimWrapper, **wrapper})
    if 'optimizer' not in wrapper or kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp changes an OptimWrapper with one optimizer, but optim_wrapper is of another kind ({kind}): set '
            'mixed precision for it in the config'
        )
    if device == 'cpu':
        wrapper.type = CPUAmpOptimWrapper.__name__
        for option in ('loss_scale', 'dtype'):  # of AmpOptimWrapper
            wrapper.pop(option, None)
    elif device in _AMP_DEVICES:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        raise UserError(f'--amp: mmengine has mixed precision for {", ".join(_AMP_DEVICES)} and cpu, not for {device}')


def check_mixed_precision(cfg: Config) -> None:
    """Checks that mmengine has the mixed precision that a config asks for on this device.

    Raises:
        UserError: If ``optim_wrapper`` is an ``AmpOptimWrapper`` and there is no accelerator.
    """
    kind, device = type_name(cfg.get('optim_wrapper') or {}), get_device()
    if kind == 'AmpOptimWrapper' and device not in _AMP_DEVICES:
        advice = '. --amp uses bfloat16 on a CPU' if device == 'cpu' else ''
        raise UserError(
            f'optim_wrapper.type={kind!r}: mmengine has it for {", ".join(_AMP_DEVICES)}, not for {device}{advice}'
        )


def stack_batches(cfg: Config) -> None:
    """Lets the workers of mmpretrain's data stack the images of a batch, as mmpretrain's own tools do.

    Images for classification all have the same size. mmengine's default, made for detection, sends them one by one,
    each in its own block of shared memory. A ``collate_fn`` in the config is kept.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))


def drop_options_of_workers(cfg: Config) -> None:
    """Removes options that torch refuses for a loader without workers, for example after ``--cfg-options`` set them to
    0."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) == 0:
            for option in ('persistent_workers', 'prefetch_factor'):
                if loader.pop(option, None):
                    print_log(f'{name}.num_workers=0: {option} is left out', logger='current')


def build_runner(cfg: Config) -> Runner:
    """Builds the Runner of a checked config, with the guards of :func:`add_guards`, stacked batches for mmpretrain, and
    no worker options for loaders without workers.

    Args:
        cfg: The config, changed in place; with ``runner_type='FlexibleRunner'`` a FlexibleRunner with a built model.

    Raises:
        UserError: If a part of mmgroupnet refuses its arguments.
    """
    add_guards(cfg)
    stack_batches(cfg)
    drop_options_of_workers(cfg)
    if _is_flexible(cfg):
        cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # FlexibleRunner lacks the Runner's default.
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not isinstance(runner.model, nn.Module):  # FlexibleRunner would build it only when it starts.
        runner.model = runner.strategy.build_model(runner.model)
    guard_foreign_code(runner.model)
    for hook in runner.hooks:
        if isinstance(hook, LabelRangeHook):
            hook.watch_from_the_start(runner)
    return runner
