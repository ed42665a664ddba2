"""Prints a config with everything that it inherits: ``python tools/misc/print_config.py CONFIG``."""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmgroupnet.engine.cli import add_config_options, read_config
from mmgroupnet.engine.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description='Print the whole config')
    add_config_options(parser)
    args = parser.parse_args()
    with one_line_errors(args):
        print(read_config(args).pretty_text)


if __name__ == '__main__':
    main()
