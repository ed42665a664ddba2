"""Makes any config binary: ``python tools/binarize.py CONFIG POLICY --out FILE``.

FILE is a complete config, which trains, tests and packs like any other; the report says what became of each part.
``tools/train.py CONFIG --binarize POLICY`` does the same before training.
"""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmgroupnet.engine.binarize_option import binarize_config, load_policy
from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.configs import write_config
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.model_report import describe_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Make the model of any config binary')
    add_config_options(parser)
    parser.add_argument(
        'policy', help='file that says what becomes binary, such as mmgroupnet::_base_/policies/groupnet_k4.py'
    )
    parser.add_argument('--out', required=True, metavar='FILE', help='the config to write, .py')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        cfg = read_config(args)
        binarize_config(cfg, load_policy(args.policy))
        report = describe_model(cfg)
        write_config(cfg, args.out)
    print(f'{report}\n{args.out} written')


if __name__ == '__main__':
    main()
