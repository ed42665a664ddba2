"""Runs the stages of a rehearsal and records their times, failures and omissions."""

import logging
import time
import traceback
from collections.abc import Callable
from logging import Logger

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.errors import UserError, summary

# With one exception, hooks of these packages prepare nothing that a batch needs.
_LIBRARIES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmgroupnet')
_PREPARING_HOOKS = ('PrepareProtoBeforeValLoopHook',)


# What an op of mmcv says on a GPU if it has no kernel for it.
_NO_CUDA_OP = 'implementation for device cuda'
_NO_CUDA_HINT = (
    "mmcv's ops were compiled without a CUDA toolkit: install one (nvcc), run pip uninstall mmcv and, with "
    'FORCE_CUDA=1, make env or build-mmcv; or train on the CPU with CUDA_VISIBLE_DEVICES='
)


def doubt_of_hooks(runner: Runner, *points: str) -> str:
    """Says why a stage may fail because a rehearsal does not call the run's hooks.

    Args:
        runner: The run.
        points: Methods of hooks that the run calls before the stage.

    Returns:
        The doubt, for :meth:`Stages.take`; '' if no hook prepares anything.
    """
    hooks = [type(hook) for hook in runner.hooks]
    missed = [
        hook.__name__
        for hook in hooks
        if any(getattr(hook, point) is not getattr(Hook, point) for point in points)
        and (hook.__module__.split('.')[0] not in _LIBRARIES or hook.__name__ in _PREPARING_HOOKS)
    ]
    return f'the rehearsal does not call {", ".join(missed)}, and that may be why' if missed else ''


class NotTriedError(Exception):
    """A part cannot be tried without changing the run; the message says which and why."""


class DoubtfulError(Exception):
    """A failure (its ``__cause__``) that may be due to the rehearsal and not to the run; the message says why."""


class TracedError(Exception):
    """A failure in another process: one line that describes it, and its traceback there."""

    def __init__(self, line: str, trace: str) -> None:
        super().__init__(trace)
        self.line = line


def line_of(error: BaseException) -> str:
    """Any exception as one line."""
    return error.line if isinstance(error, TracedError) else summary(error)


class Stages:
    """Runs the stages of a rehearsal in one process.

    Attributes:
        passed: Stages that passed, each with its time.
        remarks: Stages that were left out or failed without ending the run, and the exception if there was one.
    """

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.remarks: list[tuple[str, BaseException | None]] = []

    def leave_out(self, stage: str, reason: str) -> None:
        """Records that a stage is not tried."""
        self.remarks.append((f'{stage} is left out: {reason}', None))

    def log_remarks(self, logger: Logger) -> None:
        """Logs the remarks; tracebacks go only to files."""
        for line, error in self.remarks:
            logger.warning(line)
            if error is not None:
                trace = (type(error), error, error.__traceback__)
                record = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, line, (), trace)
                for handler in logger.handlers:
                    if isinstance(handler, logging.FileHandler):
                        handler.handle(record)

    def take(self, stage: str, hint: str, act: Callable, *args: object, doubt: str = '') -> object:
        """Calls ``act(*args)``.

        Args:
            stage: Name of the stage.
            hint: What to look at if it fails.
            act: The function of the stage.
            args: Its arguments.
            doubt: Why a failure may not concern the run; it then becomes a remark. Default: '', a failure is an error.

        Returns:
            The result of ``act``; None if it was left out or failed.

        Raises:
            UserError: If the stage fails.
        """
        start = time.perf_counter()
        try:
            result = act(*args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # Errors of kernels are raised here at the latest.
        except NotTriedError as error:
            self.leave_out(stage, str(error))
            return None
        except Exception as raised:  # Custom models, data sets and metrics raise any type.
            cause: BaseException = raised
            if isinstance(raised, DoubtfulError):
                doubt, cause = str(raised), raised.__cause__ or raised
            elif isinstance(raised, torch.OutOfMemoryError):
                doubt = 'the rehearsal needs room for a copy of the model'
                # The frames of the exception would keep the copy and its activations in memory.
                cause = TracedError(summary(raised), traceback.format_exc())
            if _NO_CUDA_OP in str(cause):
                hint = _NO_CUDA_HINT
            line = f'the rehearsal failed in {stage}: {line_of(cause)}. {hint}'
            if not doubt:
                raise UserError(f'{line}. --no-rehearsal trains without it') from cause
            self.remarks.append((f'{line}. Training goes on: {doubt}', cause))
            return None
        self.passed.append(f'{stage} {time.perf_counter() - start:.1f} s')
        return result
