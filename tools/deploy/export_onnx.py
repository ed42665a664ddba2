"""Writes a checkpoint as one .onnx file: ``python tools/deploy/export_onnx.py CONFIG CHECKPOINT --out FILE``.

docs/onnx_file.md describes the file; mmgroupnet-runtime runs it without torch and mmcv.
"""

import argparse
import sys
import time
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# An installed mmgroupnet_runtime comes first, because that of the checkout may not have been built.
sys.path.append(str(Path(__file__).resolve().parents[2] / 'runtime' / 'src'))

from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write a checkpoint as an .onnx file')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file, of a trained model or a packed one')
    parser.add_argument('--out', required=True, metavar='FILE', help='the .onnx file to write')
    parser.add_argument(
        '--raw', action='store_true', help='write the maps of the head, or those in front of it, instead of predictions'
    )
    parser.add_argument('--scores', action='store_true', help='a segmentor returns its scores beside the class map')
    parser.add_argument(
        '--strict', action='store_true', help='fail if a binary layer cannot be packed (default: it stays float)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    with one_line_errors(args):
        try:
            from mmgroupnet.engine.onnx_export import export_checkpoint
        except ModuleNotFoundError as error:
            raise UserError(f'{error.name} is not installed: pip install onnx onnxscript onnxruntime') from error
        summary = export_checkpoint(
            read_config(args), args.checkpoint, args.out, raw=args.raw, scores=args.scores, strict=args.strict
        )
    print(summary)
    print(f'exported in {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
    main()
