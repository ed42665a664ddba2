"""Ends the tools on an error: one line for errors the user can fix, and the traceback of every error in the log."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.logging.logger import MMFormatter

from mmgroupnet.errors import UserError


def _log_traceback(work_dir: str | None) -> None:
    """Writes the traceback of the current exception to the log of the run.

    This is the log of mmengine's Runner. Processes other than the first have none and write their own beside it. Before
    the Runner exists, the traceback goes to ``errors.log`` in the work directory.

    Args:
        work_dir: The work directory; None if the tool has none.
    """
    logger = MMLogger.get_current_instance()
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, 'The run ended:', (), sys.exc_info())
    for handler in files:
        handler.handle(record)
    if files or (logger.log_file is None and (work_dir is None or Path(work_dir).is_file())):
        return
    path = Path(work_dir or '.', 'errors.log') if logger.log_file is None else Path(logger.log_file)
    if get_rank():
        path = path.with_stem(f'{path.stem}_rank{get_rank()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a') as file:
            file.write(MMFormatter(color=False, datefmt='%Y/%m/%d %H:%M:%S').format(record) + '\n')
    except OSError as error:  # The error that ended the run is more important.
        print(f'{path} cannot be written: {error.strerror}', file=sys.stderr)


def _message(error: UserError) -> str:
    """The message of an error. Torch wraps the error of a loader's worker in the worker's traceback."""
    text = str(error)
    if text.startswith(f'Caught {type(error).__name__} in DataLoader worker'):
        return text.rpartition(f'{type(error).__module__}.{type(error).__qualname__}: ')[2].strip()
    return text


@contextmanager
def one_line_errors(args: argparse.Namespace | None = None) -> Iterator[None]:
    """Prints a :class:`UserError` as one message without a traceback and ends the process with status 1.

    Any other exception keeps its traceback. The log of a run has the traceback of every exception.

    Args:
        args: The command line. With ``traceback``, tracebacks of a :class:`UserError` are shown as well. Its
            ``work_dir``, if it has one, gets the log of errors before the run has a log. Default: None, for programs
            without one.
    """
    try:
        yield
    except Exception as error:
        _log_traceback(getattr(args, 'work_dir', None))
        if getattr(args, 'traceback', False) or not isinstance(error, UserError):
            raise
        # In a distributed run every process prints: a loss may be NaN in only one of them.
        print(f'error: {_message(error)}', file=sys.stderr)
        sys.exit(1)
