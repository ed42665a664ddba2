"""Split one COCO annotation file into one for training and one for evaluation, picture by picture.

data/mine/annotations.json becomes data/mine/annotations_train.json and data/mine/annotations_val.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout of this file comes first

from mmgroupnet.datasets import split_coco
from mmgroupnet.engine.cli import add_traceback_option
from mmgroupnet.engine.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', type=Path, help='annotation file in the format of COCO')
    parser.add_argument('--held-out', type=float, default=0.2, help='share of pictures to evaluate on (default: 0.2)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random choice of pictures (default: 0)')
    add_traceback_option(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        for path, pictures in split_coco(args.annotations, args.held_out, args.seed).items():
            print(f'{path}: {pictures} pictures')


if __name__ == '__main__':
    main()
