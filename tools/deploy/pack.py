"""Packs a checkpoint, one bit per binary weight: ``python tools/deploy/pack.py CONFIG CHECKPOINT --out FILE``.

tools/test.py and tools/predict.py take FILE with the same CONFIG; it runs on the CPU.
"""

import argparse
import sys
import time
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.packing import describe_layers, pack_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Pack a checkpoint')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, metavar='FILE', help='the packed checkpoint to write')
    parser.add_argument(
        '--strict', action='store_true', help='fail if a binary layer cannot be packed (default: it stays float)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    with one_line_errors(args):
        layers = pack_checkpoint(read_config(args), args.checkpoint, args.out, strict=args.strict)
    print(describe_layers(layers))
    size = Path(args.out).expanduser().stat().st_size
    print(f'{args.out}: {size:,} bytes, packed in {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
    main()
