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

# Where mmengine's AmpOptimWrapper runs.
_AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')


def synchronised_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model whose statistics are of all processes."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.SyncBatchNorm) or type(layer).__module__ == 'mmcv.ops.sync_bn'
    ]


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
        if synchronised_norms(module):
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
        cfg: The config, with ``launcher``; the model's wrapper is set where there is no GPU (``model_wrapper_cfg``, or
            ``strategy.model_wrapper`` of FlexibleRunner), with the user's own options.

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
    """The config of a model's wrapper where there is no GPU; one of the user's own class stays as it is."""
    if type_name({'type': MMDistributedDataParallel, **wrapper}) != MMDistributedDataParallel.__name__:
        return wrapper
    return dict(wrapper, type=CPUDistributedDataParallel.__name__)


def use_mixed_precision(cfg: Config) -> None:
    """``--amp``: float16 on a GPU, bfloat16 on a CPU.

    Args:
        cfg: The config; ``optim_wrapper`` is changed.

    Raises:
        UserError: If the optimizer's wrapper is one that ``--amp`` cannot replace, or mmengine has no mixed precision
            for the device.
    """
    wrapper, device = cfg.optim_wrapper, get_device()
    kind = type_name({'type': OptimWrapper, **wrapper})
    if 'optimizer' not in wrapper or kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp changes an OptimWrapper with one optimizer, and optim_wrapper is of another kind ({kind}): ask for '
            'mixed precision in its own way in the config'
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


def stack_batches(cfg: Config) -> None:
    """Lets the workers of mmpretrain's data stack the images of a batch, as mmpretrain's own tools do.

    Images of classification have one size. mmengine's default, made for detection, sends them one by one, each in a
    block of shared memory of its own. A ``collate_fn`` of the config is kept.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))


def drop_options_of_workers(cfg: Config) -> None:
    """Drops what torch refuses of a loader without workers, such as one of a config that ``--cfg-options`` takes them
    from."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) == 0:
            for option in ('persistent_workers', 'prefetch_factor'):
                if loader.pop(option, None):
                    print_log(f'{name}.num_workers=0: {option} is left out', logger='current')


def build_runner(cfg: Config) -> Runner:
    """Builds the Runner of a checked config, with the guards of :func:`add_guards`, batches of mmpretrain stacked, and
    no options of workers where there are none.

    Args:
        cfg: The config, changed in place; ``runner_type='FlexibleRunner'`` gives one of those, with its model built.

    Raises:
        UserError: If a part of mmgroupnet refuses its arguments.
    """
    add_guards(cfg)
    stack_batches(cfg)
    drop_options_of_workers(cfg)
    if _is_flexible(cfg):
        cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # The Runner's default; it has none.
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not isinstance(runner.model, nn.Module):  # FlexibleRunner would build it when it starts.
        runner.model = runner.strategy.build_model(runner.model)
    guard_foreign_code(runner.model)
    for hook in runner.hooks:
        if isinstance(hook, LabelRangeHook):
            hook.watch_from_the_start(runner)
    return runner
