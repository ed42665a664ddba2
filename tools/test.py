"""Evaluates a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``.

It also takes an .onnx file of tools/deploy/export_onnx.py, and an .npz file of predictions that mmgroupnet-run wrote on
a device. The tool serves mmdet, mmseg and mmpretrain; the config's default_scope selects the library.
"""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# An installed mmgroupnet_runtime comes first, because that of the checkout may not have been built.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'runtime' / 'src'))

from mmgroupnet.engine.cli import add_run_options, read_run_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.exported_model import check_model_options
from mmgroupnet.engine.testing import run_test


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint, an exported model, or predictions')
    add_run_options(parser)
    parser.add_argument(
        'checkpoint',
        help='checkpoint of a trained or packed model, MODEL.onnx, or PREDICTIONS.npz that mmgroupnet-run wrote',
    )
    parser.add_argument('--out', help='write all predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show every picture with its predictions')
    parser.add_argument('--show-dir', help='write every picture with its predictions to this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a shown picture stays (default: 2)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        check_model_options(args.checkpoint, args.cfg_options)
        run_test(
            read_run_config(args),
            args.checkpoint,
            out=args.out,
            show=args.show,
            show_dir=args.show_dir,
            wait_time=args.wait_time,
            tta=args.tta,
        )


if __name__ == '__main__':
    main()
