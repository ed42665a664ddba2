"""Draws predictions on pictures: ``python tools/predict.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out DIR``."""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# An installed mmgroupnet_runtime comes first, because that of the checkout may not have been built.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'runtime' / 'src'))

from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.exported_model import check_model_options
from mmgroupnet.engine.pictures import find_images
from mmgroupnet.engine.prediction import draw_on_pictures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw predictions on pictures')
    parser.add_argument(
        'images', metavar='IMAGE_OR_FOLDER', help='a picture, or a folder with pictures in it or its subfolders'
    )
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint of a trained or packed model, or MODEL.onnx')
    parser.add_argument('--out', default='predictions', help='folder for the drawn pictures (default: predictions)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a drawn detection (default: 0.3)')
    parser.add_argument('--device', help='device, such as cpu or cuda:0 (default: a GPU if there is one)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        check_model_options(args.checkpoint, args.cfg_options)
        images = find_images(args.images, args.out)
        root = args.images if Path(args.images).is_dir() else None
        cfg = read_config(args)
        drawn = draw_on_pictures(cfg, args.checkpoint, images, args.out, args.score_thr, args.device, root)
        print(f'{len(images)} pictures in {drawn}')


if __name__ == '__main__':
    main()
