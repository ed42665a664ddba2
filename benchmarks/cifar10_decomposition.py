"""Decompositions and numbers of bases on a part of CIFAR-10: ``python benchmarks/cifar10_decomposition.py``.

It compares layer-wise (LBD), group-wise (GBD v1) and Group-Net, which is GBD v1 with soft gates. tools/train.py trains
every network from scratch for 12 epochs of 10,000 images (an interrupted run resumes from its last epoch), and the
10,000 test images are evaluated after the last epoch. Every finished run appends one line to
benchmarks/results/cifar10_decomposition.jsonl, with its gates before and after training, and is not run again. At the
end the script prints and draws the table. It needs data/cifar10, see configs/classification/README.md.

A ResNet-8 (``--blocks 1``) is trained with one, three and five bases; decompositions with close results get a second
seed, and with one base all are the same. A ResNet-20 (``--blocks 3``) is trained with three and five bases, gates per
block and gates per branch, two seeds, on crops of 24x24 pixels and with --amp, which saves time.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import describe_machine, format_table  # noqa: E402
from benchmarks.trainings import collect, test, train, write_config  # noqa: E402
from mmgroupnet.analysis.training_curves import training_seconds  # noqa: E402
from mmgroupnet.checkpoints.read import read_checkpoint, saved_checkpoints  # noqa: E402
from mmgroupnet.engine.configs import load_config  # noqa: E402
from mmgroupnet.engine.model_report import count_parameters  # noqa: E402

RESULTS = Path('benchmarks/results/cifar10_decomposition.jsonl')
WORK_DIR = Path('work_dirs/cifar10_decomposition')
CONFIG = ROOT / 'configs/classification/groupnet_r20_k3_scratch_cifar10.py'
NUM_IMAGES = 10_000
EPOCHS = 12
PER_BRANCH = 'soft_gate_per_branch'
DECOMPOSITIONS = {
    'lbd': 'LBD',
    'gbd_v1': 'GBD v1',
    'soft_gate': 'Group-Net',
    PER_BRANCH: 'Group-Net, a gate per branch',
}
# For a ResNet-8, which has two gates, one kind of gates is enough.
OF_RESNET_8 = ('lbd', 'gbd_v1', 'soft_gate')
NUM_BASES = (1, 3, 5)
SEEDS = (0, 1)
# Threads share the random state.
_ALONE = threading.Lock()
CLOSE = 1.5  # points of top-1 between two decompositions with the same number of bases


class Run(NamedTuple):
    """One training.

    Attributes:
        decomposition: As in DECOMPOSITIONS; with one base 'gbd_v1' represents all.
        num_bases: Number K of bases.
        blocks: Blocks in each of the three stages, 3 is a ResNet-20.
        seed: Seed of the run.
    """

    decomposition: str
    num_bases: int
    blocks: int
    seed: int = 0


def first_runs(blocks: int) -> list[Run]:
    """All networks: a ResNet-8 with the first seed, deeper ones with both, seed by seed."""
    if blocks == 1:
        return [
            Run(decomposition, num_bases, blocks)
            for num_bases in NUM_BASES
            for decomposition in (OF_RESNET_8 if num_bases > 1 else ['gbd_v1'])
        ]
    return [
        Run(decomposition, num_bases, blocks, seed)
        for seed in SEEDS
        for num_bases in NUM_BASES[1:]
        for decomposition in DECOMPOSITIONS
    ]


def close_runs(lines: list[dict]) -> list[Run]:
    """The runs with a second seed, for ResNets-8 whose result is close to another one with the same number of bases."""
    top1 = {run: line['top1'] for run in first_runs(1) for line in lines if key(line) == run}
    return [
        run._replace(seed=1)
        for run, value in top1.items()
        if any(
            other != run and other.num_bases == run.num_bases and abs(value - of_other) < CLOSE
            for other, of_other in top1.items()
        )
    ]


def key(line: dict) -> Run:
    """The run of a line of results."""
    return Run(*(line[field] for field in Run._fields))


def config_of(run: Run) -> Path:
    """Writes the config of a run, and returns its path."""
    decomposition = 'soft_gate' if run.decomposition == PER_BRANCH else run.decomposition
    crop = '' if run.blocks == 1 else "train_pipeline[0] = dict(type='RandomCrop', crop_size=24)"
    changes = f"""
model = dict(
    backbone=dict(
        decomposition='{decomposition}',
        gate_per_branch={run.decomposition == PER_BRANCH},
        num_bases={run.num_bases},
        stage_blocks=({run.blocks}, {run.blocks}, {run.blocks}),
    )
)
train_pipeline = list(_base_.train_pipeline)
{crop}
train_dataloader = dict(dataset=dict(indices={NUM_IMAGES}, pipeline=train_pipeline))
randomness = dict(seed={run.seed})
# finish() evaluates, also what was cut off after its last epoch.
train_cfg = dict(max_epochs={EPOCHS}, val_begin={EPOCHS + 1})
"""
    return write_config(WORK_DIR / f'{"_".join(map(str, run))}.py', CONFIG, changes)


def initial_gates(config: Path) -> list[list[float]]:
    """The gates with which a run starts, as :func:`gates_of`: the Runner seeds and then builds the model."""
    cfg = load_config(str(config))
    with _ALONE, DefaultScope.overwrite_default_scope('mmpretrain'):
        set_random_seed(cfg.randomness.seed)
        return gates_of(MODELS.build(cfg.model).state_dict())


def gates_of(weights: Mapping[str, Tensor]) -> list[list[float]]:
    """The gates of a network, block by block: the share of a branch's own map in its input."""
    return [
        [round(value, 2) for value in gate.sigmoid().tolist()]
        for name, gate in weights.items()
        if name.endswith('.connection.theta')
    ]


def finish(run: Run) -> dict:
    """Trains one network and returns its line of results."""
    config = config_of(run)
    work_dir = config.with_suffix('')
    train(str(config), work_dir, amp=run.blocks > 1)
    checkpoint = saved_checkpoints(work_dir)[0]
    top1 = test(str(config), checkpoint, work_dir)['accuracy/top1']
    parameters, binary_parameters = count_parameters(str(config))
    return dict(
        run._asdict(),
        top1=round(top1, 2),
        images=NUM_IMAGES,
        epochs=EPOCHS,
        initial_gates=initial_gates(config),
        gates=gates_of(read_checkpoint(checkpoint, 'cpu')['state_dict']),
        parameters=parameters,
        binary_parameters=binary_parameters,
        seconds=round(training_seconds(work_dir)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        machine=describe_machine(torch.get_num_threads()),
    )


def cells(lines: list[dict], blocks: int) -> Iterator[tuple[str, int, list[dict]]]:
    """The lines of all seeds, by decomposition and number of bases."""
    for decomposition in OF_RESNET_8 if blocks == 1 else DECOMPOSITIONS:
        for num_bases in NUM_BASES if blocks == 1 else NUM_BASES[1:]:
            wanted = 'gbd_v1' if num_bases == 1 else decomposition
            runs = [Run(wanted, num_bases, blocks, seed) for seed in SEEDS]
            yield decomposition, num_bases, [line for line in lines if key(line) in runs]


def results_table(lines: list[dict], blocks: int) -> str:
    """Top-1 as Markdown; with two seeds the mean, and both in brackets."""
    rows: dict[str, list[str]] = {}
    numbers = []
    for decomposition, num_bases, found in cells(lines, blocks):
        values = [line['top1'] for line in found]
        mean = f'{sum(values) / len(values):.1f}' if values else '-'
        seeds = f' ({", ".join(f"{v:.1f}" for v in values)})' if len(values) > 1 else ''
        rows.setdefault(decomposition, [DECOMPOSITIONS[decomposition]]).append(mean + seeds)
        if num_bases not in numbers:
            numbers.append(num_bases)
    return format_table(['decomposition', *(f'K = {number}' for number in numbers)], list(rows.values()))


def gates_table(lines: list[dict]) -> str:
    """The gates of the ResNets-20 before and after training as Markdown, and how far they moved."""
    rows = []
    for decomposition, num_bases, found in cells(lines, blocks=3):
        for line in found:
            if line['gates']:
                start, end = (sum(line[field], []) for field in ('initial_gates', 'gates'))
                moves = [abs(before - after) for before, after in zip(start, end, strict=True)]
                rows.append(
                    [
                        f'{DECOMPOSITIONS[decomposition]}, K = {num_bases}, seed {line["seed"]}',
                        str(len(end)),
                        *(f'{min(gates):.2f} to {max(gates):.2f}' for gates in (start, end)),
                        f'{sum(moves) / len(moves):.2f}',
                        f'{max(moves):.2f}',
                    ]
                )
    header = ['network', 'gates', 'at the start', 'after training', 'mean change', 'largest change']
    return format_table(header, rows)


def plot(lines: list[dict], blocks: int, path: Path) -> None:
    """Draws top-1 over the number of bases, a dot for every seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (decomposition, title) in enumerate(DECOMPOSITIONS.items()):
        points = [
            (num_bases, [line['top1'] for line in found])
            for name, num_bases, found in cells(lines, blocks)
            if name == decomposition and found
        ]
        if not points:
            continue
        axes.plot(*zip(*((x, sum(ys) / len(ys)) for x, ys in points), strict=True), color=f'C{index}', label=title)
        axes.plot(*zip(*((x, y) for x, ys in points for y in ys), strict=True), '.', color=f'C{index}')
    axes.set(xlabel='number of bases K', ylabel='top-1 on the test images, %', xticks=NUM_BASES)
    axes.set_title(f'CIFAR-10, {NUM_IMAGES:,} images, {EPOCHS} epochs, ResNet-{6 * blocks + 2}')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--blocks',
        type=int,
        default=1,
        choices=(1, 3),
        help='blocks in each of the three stages: 1 is a ResNet-8 (default), 3 a ResNet-20',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='parallel trainings, for a GPU that one leaves idle, or with OMP_NUM_THREADS=1',
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    lines = collect(RESULTS, first_runs(args.blocks), key, finish, args.jobs)
    if args.blocks == 1:
        lines = collect(RESULTS, close_runs(lines), key, finish, args.jobs)
    plot(lines, args.blocks, RESULTS.with_name(f'{RESULTS.stem}_r{6 * args.blocks + 2}.png'))
    print(f'\n{results_table(lines, args.blocks)}')
    if args.blocks == 3:
        print(f'\n{gates_table(lines)}')


if __name__ == '__main__':
    main()
