"""Options that the command lines of the tools share."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.launch import setup_distribution
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.errors import UserError


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, which :func:`mmgroupnet.engine.errors.one_line_errors` reads."""
    parser.add_argument(
        '--traceback', action='store_true', help='show the traceback of every error (a run has it in its log as well)'
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the config, ``--cfg-options`` and ``--traceback``."""
    add_traceback_option(parser)
    parser.add_argument(
        'config', help='config file, or mmgroupnet::FOLDER/NAME.py, or that of another library, mmdet::fcos/NAME.py'
    )
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
    """Adds the options that training and testing share: config, work directory and launcher."""
    add_config_options(parser)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch's launchers before 2.0 pass one of these, later ones the other; torchrun sets only the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(args: argparse.Namespace) -> Config:
    """Loads the config of a command line, merges ``--cfg-options`` and checks the result.

    Raises:
        UserError: If the config does not exist, or its keys, values or variables or the options are refused, see
            :func:`load_config`, :func:`check_arguments` and :func:`check_overrides`.
    """
    cfg = load_config(args.config)
    cfg.merge_from_dict(check_overrides(cfg, args.cfg_options))
    check_arguments(cfg)
    return cfg


def _stem(name: str) -> str:
    """The name of a config without its folders, library and ending."""
    return Path(name.rpartition('::')[2]).stem


def read_run_config(args: argparse.Namespace) -> Config:
    """Like :func:`read_config`; also sets the launcher and the work directory, and prepares distribution.

    It sets ``args.work_dir``, too, so that later errors are logged there.

    Raises:
        UserError: As :func:`read_config`, if the launcher does not fit the machine, or the work directory is a file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    name = _stem(args.config)
    if getattr(args, 'binarize', None):  # Only training has this option.
        name += f'_{_stem(args.binarize)}'
    cfg.work_dir = args.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise UserError(f'--work-dir {cfg.work_dir} is a file: give a folder')
    setup_distribution(cfg)
    return cfg
