"""What the command lines of the tools have in common."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.logging.logger import MMFormatter

from mmgroupnet.engine.configs import check_arguments, load_config
from mmgroupnet.engine.launch import setup_distribution
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.errors import UserError


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, which :func:`one_line_errors` reads."""
    parser.add_argument(
        '--traceback', action='store_true', help='show the traceback of every error (a run has it in its log as well)'
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the config, ``--cfg-options`` and ``--traceback``."""
    add_traceback_option(parser)
    parser.add_argument('config', help='config file, or a config of an installed library such as mmdet::fcos/NAME.py')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. model.backbone.depth=18 train_cfg.max_epochs=3; '
        'lists are written key="[a,b]" or key=a,b, without spaces',
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what training and testing share: the config, the work directory and how the processes are launched."""
    add_config_options(parser)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch's launchers before 2.0 pass one of these, later ones the other; torchrun sets the environment variable
    # alone.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(args: argparse.Namespace) -> Config:
    """Loads the config of a command line, merges ``--cfg-options`` and checks the result.

    Raises:
        UserError: If the config does not exist, or holds or is given a key that does not.
    """
    cfg = load_config(args.config)
    cfg.merge_from_dict(check_overrides(cfg, args.cfg_options))
    check_arguments(cfg)
    return cfg


def read_run_config(args: argparse.Namespace) -> Config:
    """As :func:`read_config`, and sets the launcher and the work directory, and prepares distribution.

    ``args.work_dir`` is set too, so that errors from here on are logged there.

    Raises:
        UserError: As :func:`read_config`, or if the launcher does not fit the machine.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    name = Path(args.config).stem
    if getattr(args, 'binarize', None):  # An option of training alone.
        name += f'_{Path(args.binarize).stem}'
    cfg.work_dir = args.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    setup_distribution(cfg)
    return cfg


def _log_traceback(work_dir: str | None) -> None:
    """Writes the traceback of the current exception to the log of the run.

    That is the log of mmengine's Runner. Processes other than the first have none and write one of their own beside
    it. Before there is a Runner, the work directory gets an ``errors.log``.

    Args:
        work_dir: The work directory, None where the tool has none.
    """
    logger = MMLogger.get_current_instance()
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, 'The run ended:', (), sys.exc_info())
    for handler in files:
        handler.handle(record)
    if files or (logger.log_file is None and work_dir is None):
        return
    path = Path(work_dir, 'errors.log') if logger.log_file is None else Path(logger.log_file)
    if get_rank():
        path = path.with_stem(f'{path.stem}_rank{get_rank()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a') as file:
            file.write(MMFormatter(color=False, datefmt='%Y/%m/%d %H:%M:%S').format(record) + '\n')
    except OSError as error:  # The error that ended the run matters more.
        print(f'{path} cannot be written: {error.strerror}', file=sys.stderr)


def _message(error: UserError) -> str:
    """What an error says. Torch hands on that of a loader's worker with the worker's traceback around it."""
    text = str(error)
    if text.startswith(f'Caught {type(error).__name__} in DataLoader worker'):
        return text.rpartition(f'{type(error).__module__}.{type(error).__qualname__}: ')[2].strip()
    return text


@contextmanager
def one_line_errors(args: argparse.Namespace) -> Iterator[None]:
    """Prints a :class:`UserError` as one message without a traceback and ends the process with status 1.

    Any other exception keeps its traceback. The log of a run has the traceback of every exception.

    Args:
        args: The command line, with ``traceback``: show that of a :class:`UserError` as well. Its ``work_dir``, where
            it has one, takes the log of what fails before the run has one.
    """
    try:
        yield
    except Exception as error:
        _log_traceback(getattr(args, 'work_dir', None))
        if args.traceback or not isinstance(error, UserError):
            raise
        # In a distributed run every process prints: a loss may be no number in one of them alone.
        print(f'error: {_message(error)}', file=sys.stderr)
        sys.exit(1)
