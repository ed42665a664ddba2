"""Shows where the demo's binary detector loses against its float twin: ``python benchmarks/digits_detection.py``.

Each variant changes little of the demo's config, and trains for seven epochs in place of the demo's ten. tools/train.py
trains it (an interrupted run resumes from its last epoch) and evaluates it after its last epoch. Every finished run
appends one line to benchmarks/results/digits_detection.jsonl; variants with a line there are not run again. At the end
the script prints the table. It needs data/digits, which ``make demo`` or tools/dataset_converters/digits.py makes.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import format_table  # noqa: E402
from benchmarks.trainings import box_results, collect, train, write_config  # noqa: E402

RESULTS = Path('benchmarks/results/digits_detection.jsonl')
WORK_DIR = Path('work_dirs/digits')
BINARY, TWIN = 'fcos_groupnet_digits', 'fcos_float_digits'
_LEARNED_THRESHOLDS = """
activation = dict(type='mmgroupnet.ShiftedSign')
model = dict(
    backbone=dict(binary_cfg=dict(activation=activation)),
    neck=dict(binary_cfg=dict(activation=activation)),
    bbox_head=dict(binary_cfg=dict(activation=activation)),
)
"""
_FLOAT_HEAD = """
model = dict(
    bbox_head=dict(
        _delete_=True, type='FCOSHead', num_classes=10, in_channels=64, stacked_convs=2, feat_channels=64,
        strides=[8, 16, 32], regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        norm_on_bbox=True, centerness_on_reg=True, center_sampling=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    )
)
"""
_BINARY_LATERALS = """
_base_.model.neck.binary_laterals = True
"""


def _rate(value: str) -> str:
    return f'\noptim_wrapper = dict(optimizer=dict(lr={value}))\n'


_SHORT = """
train_cfg = dict(max_epochs=7)
"""
_LOW_RATE = _SHORT + _rate('5e-3')
_LATERALS_LOW_RATE = _BINARY_LATERALS + _LOW_RATE
_MORE_BASES = """
model = dict(bbox_head=dict(num_bases=6))
"""
_MORE_CONVS = """
model = dict(bbox_head=dict(stacked_convs=4))
"""
# Title, base config and changes, by name.
VARIANTS = {
    'twin': ('float twin, rate 5e-3 (the demo)', TWIN, ''),
    'binary': ('binary backbone, neck and head, K = 3, rate 1e-2 (the demo)', BINARY, ''),
    'twin_7_epochs': ('float twin, rate 5e-3', TWIN, _SHORT),
    'twin_rate_1e-2': ('float twin, rate 1e-2', TWIN, _SHORT + _rate('1e-2')),
    'binary_7_epochs': ('binary, rate 1e-2', BINARY, _SHORT),
    'rate_2e-2': ('binary, rate 2e-2', BINARY, _SHORT + _rate('2e-2')),
    'rate_5e-3': ('binary, rate 5e-3', BINARY, _LOW_RATE),
    'more_bases': ('binary, rate 5e-3, K = 6 in the head', BINARY, _LOW_RATE + _MORE_BASES),
    'more_convs': ('binary, rate 5e-3, towers of four convs in place of two', BINARY, _LOW_RATE + _MORE_CONVS),
    'binary_laterals': ('binary, binary laterals, rate 5e-3', BINARY, _LATERALS_LOW_RATE),
    'binary_laterals_rate_1e-2': ('binary, binary laterals, rate 1e-2', BINARY, _BINARY_LATERALS + _SHORT),
    'learned_thresholds': (
        'binary, binary laterals, rate 5e-3, `ShiftedSign`',
        BINARY,
        _LATERALS_LOW_RATE + _LEARNED_THRESHOLDS,
    ),
    'float_head': ('binary, binary laterals, rate 5e-3, float head', BINARY, _LATERALS_LOW_RATE + _FLOAT_HEAD),
}


def config_of(name: str) -> Path:
    """Writes the config of a variant, and returns its path."""
    _, base, changes = VARIANTS[name]
    return write_config(WORK_DIR / f'{name}.py', ROOT / f'configs/demo/{base}.py', changes)


def run(name: str) -> dict:
    """Trains a variant and returns its line of results."""
    import torch

    config, work_dir = config_of(name), WORK_DIR / name
    train(str(config), work_dir)
    return dict(
        variant=name,
        **box_results(work_dir),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def name_of(line: dict) -> str:
    """The variant of a line of results."""
    return line['variant']


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, in the order of VARIANTS."""
    found = {name_of(line): line for line in lines}
    rows = [
        (title, found[name]['epochs'], f'{found[name]["AP"]:.3f}', f'{found[name]["AP50"]:.3f}')
        for name, (title, _, _) in VARIANTS.items()
        if name in found
    ]
    return format_table(['detector', 'epochs', 'AP', 'AP50'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    print(f'\n{results_table(collect(RESULTS, list(VARIANTS), name_of, run))}')


if __name__ == '__main__':
    main()
