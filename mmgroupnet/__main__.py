"""The tools as one command: ``mmgroupnet COMMAND ...`` or ``python -m mmgroupnet COMMAND ...``.

A command runs the same file in ``tools/`` as MIM and a checkout. No heavy module is imported before the command is
known.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

from mmgroupnet.errors import nearest
from mmgroupnet.shipped_files import shipped
from mmgroupnet.version import __version__

# Name of a command: its file and description.
COMMANDS = {
    'train': ('train.py', 'train a model'),
    'test': ('test.py', 'evaluate a checkpoint, an exported model, or predictions'),
    'predict': ('predict.py', 'draw predictions on pictures'),
    'pack': ('deploy/pack.py', 'pack a checkpoint, one bit per binary weight'),
    'export': ('deploy/export_onnx.py', 'write a checkpoint as an .onnx file'),
    'binarize': ('binarize.py', 'make the model of any config binary'),
    'complexity': ('analysis_tools/get_complexity.py', 'parameters, sizes and operations of a model'),
    'config': ('misc/print_config.py', 'print a config with everything that it inherits'),
    'split-coco': (
        'dataset_converters/split_coco.py',
        'split a COCO file into one for training and one for validation',
    ),
    'digits': ('dataset_converters/digits.py', 'generate the data set of the demo'),
    'build-mmcv': ('misc/build_mmcv.py', 'install mmcv, compiled for the torch that is installed'),
}

_HELP = """usage: mmgroupnet COMMAND ...

Structured binary neural networks (Group-Net) for OpenMMLab.

commands:
{commands}

mmgroupnet COMMAND --help describes a command. Where a command takes a config, mmgroupnet::FOLDER/NAME.py names one of
{configs}

Several processes: torchrun --nproc_per_node N -m mmgroupnet train CONFIG --launcher pytorch
"""


def help_text() -> str:
    """The text of ``mmgroupnet --help``."""
    commands = '\n'.join(f'  {name:<12}{what}' for name, (_, what) in COMMANDS.items())
    return _HELP.format(commands=commands, configs=shipped('configs'))


def main() -> None:
    """Runs the command that the command line names; ends the process with status 2 for an unknown name."""
    name, *options = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(help_text(), end='')
        return
    if name == '--version':
        print(f'mmgroupnet {__version__}')
        return
    if name not in COMMANDS:
        print(
            f'mmgroupnet: error: there is no command {name!r}{nearest(name, COMMANDS)}: mmgroupnet --help lists them',
            file=sys.stderr,
        )
        sys.exit(2)
    path = shipped('tools') / COMMANDS[name][0]
    sys.argv = [f'mmgroupnet {name}', *options]  # The tool's help and errors begin with its name.
    spec = spec_from_file_location(f'mmgroupnet_{name}', path)
    assert spec is not None and spec.loader is not None  # true for every file that ends in .py
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main()


if __name__ == '__main__':
    main()
