"""What the command lines of the tools have in common."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, DictAction

from mmgroupnet.engine.configs import check_arguments, load_config
from mmgroupnet.engine.launch import setup_distribution
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.errors import UserError


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the config and ``--cfg-options``."""
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

    Raises:
        UserError: As :func:`read_config`, or if the launcher does not fit the machine.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    name = Path(args.config).stem
    if getattr(args, 'binarize', None):  # An option of training alone.
        name += f'_{Path(args.binarize).stem}'
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    setup_distribution(cfg)
    return cfg


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints a :class:`UserError` as one message without a traceback and ends the process with status 1."""
    try:
        yield
    except UserError as error:
        # In a distributed run every process prints: a loss may be no number in one of them alone.
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
