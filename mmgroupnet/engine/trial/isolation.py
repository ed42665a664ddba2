"""Copies a run's parts for trials, and isolates the run from a trial."""

import contextlib
import copy
import io
import logging
import random
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.runner.runner import _SlicedDataset
from torch import Tensor, distributed, nn

from mmgroupnet.engine.trial.stages import NotTriedError
from mmgroupnet.errors import summary
from mmgroupnet.layers.lean.path import forget_warnings

# Log lines of the rehearsal itself begin with this.
PROGRESS = 'Rehearsal'
# Attributes that a data set only reads and that may be too large to copy.
_ANNOTATIONS = ('data_list', 'data_bytes', 'data_address')


def _deepcopy(part: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(part, memo)
    except Exception as error:  # Custom parts raise any type.
        raise NotTriedError(f'{type(part).__name__} cannot be copied ({summary(error)})') from error


@contextmanager
def _random_states() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _shared_notes(runner: Runner) -> Iterator[None]:
    hub = runner.message_hub
    scalars, info = copy.deepcopy(dict(hub.log_scalars)), dict(hub.runtime_info)
    classes = runner.visualizer.dataset_meta
    try:
        yield
    finally:
        for current, saved in ((hub.log_scalars, scalars), (hub.runtime_info, info)):
            current.clear()
            current.update(saved)
        runner.visualizer.dataset_meta = classes


@contextmanager
def _silence(runner: Runner) -> Iterator[None]:
    def progress_alone(record: logging.LogRecord) -> bool:
        return str(record.msg).startswith(PROGRESS)

    loggers = (runner.logger, MMLogger.get_current_instance())
    for logger in loggers:
        logger.addFilter(progress_alone)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(progress_alone)
        forget_warnings()


@contextmanager
def isolated(runner: Runner) -> Iterator[None]:
    """A context that preserves the random states, the log, the message hub and the visualizer of a run; only log lines
    that begin with ``PROGRESS`` remain.

    Args:
        runner: The run.
    """
    with _random_states(), _shared_notes(runner), _silence(runner):
        try:
            yield
        finally:
            # A GPU does not recover from a kernel's error, which is the error to show.
            with contextlib.suppress(RuntimeError):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()


@contextmanager
def alone() -> Iterator[None]:
    """A context without collectives, so a process that fails does not leave others waiting.

    If models, losses and metrics ask torch whether there are other processes, the answer is no.
    """
    is_initialized = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = is_initialized


def _module_of(content: object) -> nn.Module | None:
    """The module that a function refers to, directly or by a method."""
    content = getattr(content, '__self__', content)
    return content if isinstance(content, nn.Module) else None


def _closures(model: nn.Module) -> list[types.FunctionType]:
    """Functions set on modules that refer to modules, such as a ``forward`` with activation checkpointing."""
    return [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, types.FunctionType)
        and any(_module_of(cell.cell_contents) is not None for cell in value.__closure__ or ())
    ]


def copy_model(model: nn.Module) -> nn.Module:
    """A copy that shares no weights, buffers or attributes with a model.

    Args:
        model: The model, not wrapped.

    Raises:
        NotTriedError: If a part of it cannot be copied.
    """
    # Non-leaf tensors of old weight norms; torch copies only leaves.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    # copy.deepcopy does not copy functions, so the copy would run the original model's modules.
    closures = _closures(model)
    for function in closures:
        cells = tuple(types.CellType(cell.cell_contents) for cell in function.__closure__ or ())
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        twin.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = twin
    copied = _deepcopy(model, memo)
    for function in closures:
        for cell in memo[id(function)].__closure__:
            if _module_of(cell.cell_contents) is not None:
                cell.cell_contents = _deepcopy(cell.cell_contents, memo)
    for name, value in vars(model).items():
        if hasattr(value, '_torchdynamo_orig_callable'):  # Compiling it would take minutes.
            delattr(copied, name)
    return copied


def without_step(optim_wrapper: OptimWrapper) -> OptimWrapper:
    """A copy of an optimizer's wrapper that runs forward and backward passes but does not change weights."""
    copied = copy.copy(optim_wrapper)
    if isinstance(copied, OptimWrapperDict):
        copied.optim_wrappers = {name: without_step(wrapper) for name, wrapper in copied.optim_wrappers.items()}
        return copied
    copied.step = copied.zero_grad = lambda **kwargs: None
    if hasattr(copied, 'loss_scaler'):
        copied.loss_scaler = copy.copy(copied.loss_scaler)
    return copied


def copy_dataset(dataset: BaseDataset) -> BaseDataset:
    """A copy of a data set with its own transforms, which may keep state; annotations are shared.

    Raises:
        NotTriedError: If a part of it cannot be copied.
    """
    if isinstance(dataset, _SlicedDataset):  # The attributes that it forwards from the inner data set cannot be copied.
        return _SlicedDataset(copy_dataset(dataset._dataset), len(dataset))
    memo: dict[int, Any] = {}
    inner = [dataset]
    while inner:
        part = inner.pop()
        memo |= {id(value): value for name, value in vars(part).items() if name in _ANNOTATIONS}
        inner += [part.dataset] if hasattr(part, 'dataset') else getattr(part, 'datasets', [])
    return _deepcopy(dataset, memo)


def copy_metric(metric: BaseMetric, folder: Path) -> BaseMetric:
    """A copy of a metric without results, which writes its files into a folder.

    Args:
        metric: The metric; annotations that it has read (``_coco_api``) are shared.
        folder: An existing folder.

    Raises:
        NotTriedError: If a part of it cannot be copied.
    """
    if not isinstance(metric, BaseMetric) or hasattr(metric, '__del__'):
        raise NotTriedError(f'{type(metric).__name__} has files or results of its own')
    memo = {id(value): value for name, value in vars(metric).items() if name.endswith('_api')}
    copied = _deepcopy(metric, memo)
    copied.results.clear()
    for name, value in list(vars(copied).items()):
        is_output = any(word.startswith('out') for word in name.split('_'))  # out_file_path, outfile_prefix, output_dir
        if is_output and isinstance(value, str | Path) and str(value):
            path = folder / Path(value).name
            if 'dir' in name:
                path.mkdir(exist_ok=True)
            setattr(copied, name, type(value)(path))
    return copied
