"""Prints parameters, sizes and operations of a model: ``python tools/analysis_tools/get_complexity.py CONFIG``.

It takes float and binary models of mmdet, mmseg and mmpretrain.
"""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.model_report import describe_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Parameters, sizes and operations of a model')
    add_config_options(parser)
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help='input size (default: the size of the test pipeline)'
    )
    parser.add_argument('--per-layer', action='store_true', help='one row per layer instead of one per part')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        size = tuple(args.shape) if args.shape else None
        print(describe_model(read_config(args), size=size, per_layer=args.per_layer))


if __name__ == '__main__':
    main()
