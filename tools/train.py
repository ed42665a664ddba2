"""Trains a model: ``python tools/train.py CONFIG``.

The tool serves mmdet, mmseg and mmpretrain; the config's default_scope selects the library.
"""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmgroupnet.engine.binarize_option import load_policy
from mmgroupnet.engine.cli import add_run_options, read_run_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.training import run_training


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    add_run_options(parser)
    parser.add_argument(
        '--binarize',
        metavar='POLICY',
        help='make the model binary by this policy, such as mmgroupnet::_base_/policies/groupnet_k4.py; the config in '
        'the work directory is then complete',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (bfloat16 on a CPU)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size of all processes'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume a run from the given checkpoint or from the last one in the work directory',
    )
    parser.add_argument(
        '--no-rehearsal',
        action='store_true',
        help='start at once: do not compare data sets, heads and evaluators, and do not try a batch of each loader and '
        'a checkpoint',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        run_training(
            read_run_config(args),
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            resume=args.resume,
            policy=load_policy(args.binarize) if args.binarize else None,
            rehearse=not args.no_rehearsal,
        )


if __name__ == '__main__':
    main()
