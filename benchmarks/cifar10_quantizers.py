"""Measures the gain of quantizers, a float start and soft labels: ``python benchmarks/cifar10_quantizers.py``.

It trains a Group-Net** ResNet-20 with K = 3 on CIFAR-10, from the paper's quantizers and random weights to the recipe
of configs/classification/groupnet_r20_k3_distilled_cifar10.py, and this recipe from random weights: each row adds one
change to the row above it. tools/train.py --amp trains every network for 8 epochs of 10,000 images, on crops of 24x24
pixels (an interrupted run resumes from its last epoch), and the 10,000 whole test images are evaluated after the last
epoch. Every finished run appends one line to benchmarks/results/cifar10_quantizers.jsonl and is not run again. At the
end the script prints the table. It needs data/cifar10 and data/pretrained_cifar_resnet, see
configs/classification/README.md.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import describe_machine, format_table  # noqa: E402
from benchmarks.trainings import collect, test, train, write_config  # noqa: E402
from mmgroupnet.analysis.training_curves import training_seconds  # noqa: E402
from mmgroupnet.checkpoints.read import saved_checkpoints  # noqa: E402

RESULTS = Path('benchmarks/results/cifar10_quantizers.jsonl')
WORK_DIR = Path('work_dirs/cifar10_quantizers')
NUM_IMAGES = 10_000
EPOCHS = 8
_SCRATCH = 'groupnet_r20_k3_scratch_cifar10.py'
_FROM_FLOAT = 'groupnet_r20_k3_from-float_cifar10.py'
_BUDGET = f"""
pipeline = list(_base_.train_pipeline)
pipeline[0] = dict(type='RandomCrop', crop_size=24)
train_dataloader = dict(dataset=dict(indices={NUM_IMAGES}, pipeline=pipeline))
train_cfg = dict(max_epochs={EPOCHS}, val_begin={EPOCHS + 1})
optim_wrapper = dict(optimizer=dict(lr=5e-3))
"""
_TENSOR_SCALES = """
_base_.model.backbone.binary_cfg.weight.type = 'mmgroupnet.TensorScaleWeight'
"""
_SHIFTED = """
_base_.model.backbone.binary_cfg.activation = dict(type='mmgroupnet.ShiftedSign')
"""
_NO_WHOLE_IMAGES = """
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'SwitchRecipeHook']
"""
_RANDOM = """
model = dict(backbone=dict(init_cfg=None))
"""
# Title, base config and changes, by name.
VARIANTS = {
    'paper': ("the paper's quantizers, from scratch", _SCRATCH, _TENSOR_SCALES),
    'from_float': ('from a float ResNet-20', _FROM_FLOAT, _TENSOR_SCALES),
    'channel_scales': ('a scale per channel, `ChannelScaleWeight`', _FROM_FLOAT, ''),
    'learned_thresholds': ('learned thresholds, `ShiftedSign`', _FROM_FLOAT, _SHIFTED),
    'distilled': (
        'soft labels of the float ResNet-20',
        'groupnet_r20_k3_distilled_cifar10.py',
        _NO_WHOLE_IMAGES,
    ),
    'from_random': (
        'random weights in place of the float ones',
        'groupnet_r20_k3_distilled_cifar10.py',
        _NO_WHOLE_IMAGES + _RANDOM,
    ),
}


def config_of(name: str) -> Path:
    """Writes the config of a variant, and returns its path."""
    _, base, changes = VARIANTS[name]
    return write_config(WORK_DIR / f'{name}.py', ROOT / 'configs/classification' / base, _BUDGET + changes)


def name_of(line: dict) -> str:
    """The variant of a line of results."""
    return line['variant']


def finish(name: str) -> dict:
    """Trains a variant and returns its line of results."""
    config, work_dir = config_of(name), WORK_DIR / name
    train(str(config), work_dir, amp=True)
    top1 = test(str(config), saved_checkpoints(work_dir)[0], work_dir)['accuracy/top1']
    return dict(
        variant=name,
        top1=round(top1, 2),
        images=NUM_IMAGES,
        epochs=EPOCHS,
        seconds=round(training_seconds(work_dir)),
        machine=describe_machine(torch.get_num_threads()),
    )


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, in the order of VARIANTS."""
    found = {name_of(line): line for line in lines}
    rows, before = [], None
    for name, (title, _, _) in VARIANTS.items():
        if name not in found:
            continue
        top1 = found[name]['top1']
        rows.append(
            [
                title if before is None else f'+ {title}',
                f'{top1:.1f}',
                '' if before is None else f'{top1 - before:+.1f}',
            ]
        )
        before = top1
    return format_table(['', 'top-1', 'gain'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--jobs', type=int, default=1, help='parallel trainings; give each a thread: OMP_NUM_THREADS=1')
    args = parser.parse_args()
    os.chdir(ROOT)
    print(f'\n{results_table(collect(RESULTS, list(VARIANTS), name_of, finish, args.jobs))}')


if __name__ == '__main__':
    main()
