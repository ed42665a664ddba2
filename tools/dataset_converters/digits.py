"""Generate the digits set: real handwritten digits on photographs, with boxes and masks."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout of this file comes first

from mmgroupnet.datasets import generate_digits
from mmgroupnet.engine.cli import add_traceback_option
from mmgroupnet.engine.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out-dir', default='data/digits', help='folder of the set')
    parser.add_argument('--num-train', type=int, default=600, help='number of training images')
    parser.add_argument('--num-val', type=int, default=120, help='number of validation images')
    parser.add_argument('--image-size', type=int, default=160, help='side of the square images in pixels')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same set')
    add_traceback_option(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        out_dir = generate_digits(args.out_dir, args.num_train, args.num_val, args.image_size, args.seed)
    print(f'digits: {args.num_train} training and {args.num_val} validation images are in {out_dir}')


if __name__ == '__main__':
    main()
