"""Converts a checkpoint that Group-Net's authors published: ``python tools/model_converters/official_to_mmgroupnet.py
SRC DST``.

DST is the checkpoint; its config is written beside it, with the suffix ``.py``. tools/test.py, tools/predict.py and
tools/deploy/pack.py take both.
"""

import argparse
import sys
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.config import Config

from mmgroupnet.checkpoints.read import read_checkpoint
from mmgroupnet.checkpoints.write import write_checkpoint
from mmgroupnet.converters import convert_official
from mmgroupnet.engine.cli import add_traceback_option
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.errors import UserError

# Pictures are resized with Pillow, as in torchvision.
_CONFIG = """# {source}, converted by tools/model_converters/official_to_mmgroupnet.py: to test and to pack.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py', 'mmpretrain::_base_/default_runtime.py']

{model}
train_dataloader = None
val_cfg = dict()
test_cfg = dict()
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a checkpoint of Group-Net's authors")
    parser.add_argument('src', metavar='SRC', help='the published file, .pth.tar')
    parser.add_argument('dst', metavar='DST', help='the checkpoint to write, .pth; its config is beside it, .py')
    add_traceback_option(parser)
    return parser.parse_args()


def convert(source: Path, target: Path) -> Path:
    """Converts a file.

    Args:
        source: The published file.
        target: The checkpoint to write.

    Returns:
        The config that is written beside it.

    Raises:
        UserError: If the source cannot be read or is not a checkpoint of the authors, or a file cannot be written.
    """
    config = target.with_suffix('.py')
    if target.suffix != '.pth':
        raise UserError(f'DST {target}: give a name that ends in .pth')
    content = read_checkpoint(source, 'cpu')
    if not isinstance(content.get('state_dict'), dict):
        raise UserError(f'checkpoint {source} has no state_dict: its keys are {", ".join(map(str, content))}')
    try:
        model, state_dict = convert_official(content['state_dict'])
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    text = _CONFIG.format(source=source.name, model=Config(dict(model=model)).pretty_text)
    if config.exists() and config.read_text() != text:
        raise UserError(f'{config} exists and is another config: remove it, or give another DST')
    meta = dict(cfg=Config.fromstring(text, '.py').pretty_text)
    write_checkpoint(dict(meta=meta, state_dict=state_dict), target)
    config.write_text(text)
    return config


def main() -> None:
    args = parse_args()
    target = Path(args.dst).expanduser()
    with one_line_errors(args):
        config = convert(Path(args.src).expanduser(), target)
    print(f'{target}: the checkpoint\n{config}: its config')


if __name__ == '__main__':
    main()
