"""The demo: train a small all-binary detector and its float twin on real handwritten digits, and compare them.

``make demo`` runs this. Each step is what a person would type: the generator of the data, ``tools/train.py``,
``tools/test.py``. A run that was interrupted goes on where it stopped; a finished one is kept beside as
``<work dir>_previous`` when the demo is run again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

DATA_ROOT = Path('data/digits')  # like all paths here and in the configs, relative to the checkout
NUM_STEPS = 6
NUM_TILES = 12
SCORE_THRESHOLD = 0.3


class Detector(NamedTuple):
    """One of the two detectors that are compared."""

    name: str
    config: str
    work_dir: Path

    @property
    def predictions(self) -> Path:
        return self.work_dir / 'evaluation' / 'predictions.pkl'


class Result(NamedTuple):
    """A line of the table."""

    name: str
    ap: float
    ap50: float
    parameters: int
    binary_parameters: int
    seconds: float


class StepFailed(Exception):
    """A command of the demo ended with an error that it has printed itself."""


class Stopwatch:
    """Announces steps and takes their seconds, kept in a file so that an interrupted demo counts all its runs.

    Args:
        path: The file, JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_started = 0
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and take its time, also if it fails or is interrupted."""
        self.num_started += 1
        print(f'\n===== step {self.num_started}/{NUM_STEPS}: {title} =====', flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self.seconds[title] = self.seconds.get(title, 0) + seconds
            self.path.write_text(json.dumps(self.seconds, indent=2))
        print(f'===== done in {seconds:.0f} s =====', flush=True)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/demo'), help='folder of the results, in the checkout'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings of both configs to override, e.g. train_cfg.max_epochs=2 for a quick look',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmgroupnet.engine.errors import UserError

    os.chdir(ROOT)
    try:
        run_demo(args.work_dir, args.cfg_options)
    except KeyboardInterrupt:
        sys.exit('\ndemo: interrupted; the same command goes on from the last checkpoint.')
    except (StepFailed, UserError, OSError, ImportError) as error:
        sys.exit(f'demo: {error}')


def run_demo(work_dir: Path, cfg_options: list[str]) -> None:
    """Run all steps and print the table.

    Args:
        work_dir: Folder of the results.
        cfg_options: ``KEY=VALUE`` overrides for both configs.
    """
    from mmgroupnet.datasets import generate_digits
    from mmgroupnet.engine.model_report import count_parameters

    binary = Detector('all-binary detector', 'configs/demo/fcos_groupnet_digits.py', work_dir)
    twin = Detector('float twin', 'configs/demo/fcos_float_digits.py', work_dir / 'float_twin')

    keep_finished_results(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    stopwatch = Stopwatch(work_dir / 'seconds.json')
    with stopwatch.step('generate the digits'):
        print(f'They are in {generate_digits(DATA_ROOT)}/.')
    for detector in (binary, twin):
        with stopwatch.step(f'train the {detector.name}'):
            train(detector, cfg_options)
    results = []
    for detector in (binary, twin):
        with stopwatch.step(f'evaluate the {detector.name}'):
            metrics = evaluate(detector, cfg_options)
        results.append(
            Result(
                detector.name,
                # Where nothing at all was detected, as after an epoch or two, mmdet gives no metrics.
                metrics.get('coco/bbox_mAP', 0.0),
                metrics.get('coco/bbox_mAP_50', 0.0),
                *count_parameters(detector.config),
                stopwatch.seconds[f'train the {detector.name}'],
            )
        )
    with stopwatch.step('draw the results'):
        draw_results(binary, twin)

    checkpoint = last_checkpoint(binary)
    write_summary(work_dir / 'summary.json', results, checkpoint, stopwatch.total)
    print(f'\n{format_table(results)}\n')
    print(f'{stopwatch.total:.0f} seconds in all. Where to look:')
    for path, content in (
        (work_dir / 'contact_sheet.png', 'detections beside ground truth'),
        (work_dir / 'curves.png', 'loss and AP over training'),
        (work_dir / 'summary.json', 'these figures'),
        (checkpoint, 'the detector, for tools/predict.py and tools/test.py'),
    ):
        print(f'    {str(path):<36} {content}')


def keep_finished_results(work_dir: Path) -> None:
    """Move the results of a finished demo aside, so that this run trains anew; leave those of an unfinished one."""
    if not (work_dir / 'summary.json').exists():
        return
    previous = work_dir.with_name(f'{work_dir.name}_previous')
    if previous.exists():
        shutil.rmtree(previous)
    work_dir.rename(previous)
    print(f'The results of the last demo are kept in {previous}.')


def train(detector: Detector, cfg_options: list[str]) -> None:
    # --resume without a checkpoint in the work directory starts from the beginning.
    run_tool('tools/train.py', detector.config, '--work-dir', detector.work_dir, '--resume', cfg_options=cfg_options)


def evaluate(detector: Detector, cfg_options: list[str]) -> dict[str, float]:
    """Evaluate the last checkpoint and return the metrics by name."""
    folder = detector.predictions.parent
    shutil.rmtree(folder, ignore_errors=True)  # so that the metrics found there are of this evaluation
    folder.mkdir()
    run_tool(
        'tools/test.py',
        detector.config,
        last_checkpoint(detector),
        '--work-dir',
        folder,
        '--out',
        detector.predictions,
        cfg_options=cfg_options,
    )
    (metrics,) = folder.glob('*/*.json')
    return json.loads(metrics.read_text())


def run_tool(*command: str | Path, cfg_options: list[str]) -> None:
    """Run a tool of this checkout with its output on the terminal.

    Raises:
        StepFailed: If it ends with an error.
    """
    words = [str(word) for word in command] + (['--cfg-options', *cfg_options] if cfg_options else [])
    print('$ python', *words, flush=True)
    status = subprocess.run([sys.executable, *words]).returncode
    if status:
        raise StepFailed(f'{words[0]} ended with exit status {status}; its error is above.')


def last_checkpoint(detector: Detector) -> Path:
    from mmgroupnet.engine.checkpoint import find_resumable

    checkpoint = find_resumable(str(detector.work_dir))
    if checkpoint is None:
        raise StepFailed(f'there is no checkpoint in {detector.work_dir}, although its training ended.')
    return Path(checkpoint)


def draw_results(binary: Detector, twin: Detector) -> None:
    """Write ``contact_sheet.png`` and ``curves.png`` into the work directory."""
    from mmgroupnet.analysis.contact_sheet import draw_contact_sheet, load_tiles
    from mmgroupnet.analysis.training_curves import plot_training_curves, read_history
    from mmgroupnet.datasets import DIGIT_CLASSES

    tiles = load_tiles(
        DATA_ROOT / 'annotations' / 'instances_val.json',
        DATA_ROOT / 'val',
        binary.predictions,
        DIGIT_CLASSES,
        NUM_TILES,
        SCORE_THRESHOLD,
    )
    title = (
        f'All-binary FCOS on handwritten digits: {len(tiles)} validation images, evenly chosen; '
        f'detections with a score of at least {SCORE_THRESHOLD}'
    )
    draw_contact_sheet(tiles, DIGIT_CLASSES, title).save(binary.work_dir / 'contact_sheet.png')
    plot_training_curves(
        {detector.name: read_history(detector.work_dir) for detector in (binary, twin)},
        {'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP': 'AP'},
        binary.work_dir / 'curves.png',
        'FCOS on handwritten digits: all binary beside its float twin',
    )


def write_summary(path: Path, results: list[Result], checkpoint: Path, seconds: float) -> None:
    """Write the figures for programs; the first result is the binary detector, the second its twin."""
    binary, twin = results
    summary = {
        'bbox_mAP': binary.ap,
        'bbox_mAP_50': binary.ap50,
        'float_bbox_mAP': twin.ap,
        'float_bbox_mAP_50': twin.ap50,
        'checkpoint': str(checkpoint),
        'seconds': round(seconds),
    }
    path.write_text(json.dumps(summary, indent=2) + '\n')


def format_table(results: list[Result]) -> str:
    """The results as aligned columns."""
    header = ('detector', 'AP', 'AP50', 'parameters', 'of them 1-bit', 'training')
    rows = [
        (
            result.name,
            f'{result.ap:.3f}',
            f'{result.ap50:.3f}',
            f'{result.parameters:,}',
            f'{result.binary_parameters / result.parameters:.0%}',
            f'{result.seconds:.0f} s',
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        '  '.join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
