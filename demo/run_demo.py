"""The demo: train a small binary detector and its float twin on real handwritten digits, and compare them.

``make demo`` runs this. The steps are commands that you can also run one by one: the generator of the data,
``tools/train.py`` and ``tools/test.py``. An interrupted run continues where it stopped. A finished run is renamed to
``<work dir>_previous`` when the demo runs again.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # This checkout comes before an installed mmgroupnet.

from demo import steps

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


def run(work_dir: Path, cfg_options: list[str]) -> None:
    """Run all steps and print the table.

    Args:
        work_dir: Folder of the results.
        cfg_options: ``KEY=VALUE`` overrides for both configs.
    """
    from mmgroupnet.datasets import generate_digits
    from mmgroupnet.engine.model_report import count_parameters

    binary = Detector('binary detector', 'configs/demo/fcos_groupnet_digits.py', work_dir)
    twin = Detector('float twin', 'configs/demo/fcos_float_digits.py', work_dir / 'float_twin')

    stopwatch = steps.Stopwatch(work_dir / 'seconds.json', NUM_STEPS)
    with stopwatch.step('generate the digits'):
        print(f'They are in {generate_digits(steps.DATA_ROOT)}/.')
    for detector in (binary, twin):
        with stopwatch.step(f'train the {detector.name}'):
            steps.train(detector.config, detector.work_dir, cfg_options)
    results = []
    for detector in (binary, twin):
        with stopwatch.step(f'evaluate the {detector.name}'):
            metrics = steps.evaluate(detector.config, detector.work_dir, cfg_options, '--out', detector.predictions)
        results.append(
            Result(
                detector.name,
                # If nothing was detected, as after an epoch or two, mmdet returns no metrics.
                metrics.get('coco/bbox_mAP', 0.0),
                metrics.get('coco/bbox_mAP_50', 0.0),
                *count_parameters(detector.config),
                stopwatch.seconds[f'train the {detector.name}'],
            )
        )
    with stopwatch.step('draw the results'):
        draw_results(binary, twin)

    checkpoint = steps.last_checkpoint(binary.work_dir)
    write_summary(work_dir / 'summary.json', results, checkpoint, stopwatch.total)
    print(f'\n{format_table(results)}\n')
    places = [
        (work_dir / 'contact_sheet.png', 'detections beside ground truth'),
        (work_dir / 'curves.png', 'loss and AP over training'),
        (work_dir / 'summary.json', 'these figures'),
        (checkpoint, 'the detector, for tools/predict.py and tools/test.py'),
    ]
    steps.print_places(places, stopwatch.total)


def draw_results(binary: Detector, twin: Detector) -> None:
    """Write ``contact_sheet.png`` and ``curves.png`` into the work directory."""
    from mmgroupnet.analysis.contact_sheet import draw_contact_sheet, load_tiles
    from mmgroupnet.analysis.training_curves import plot_training_curves, read_history
    from mmgroupnet.datasets import DIGIT_CLASSES

    tiles = load_tiles(
        steps.DATA_ROOT / 'annotations' / 'instances_val.json',
        steps.DATA_ROOT / 'val',
        binary.predictions,
        DIGIT_CLASSES,
        NUM_TILES,
        SCORE_THRESHOLD,
    )
    title = (
        f'Binary FCOS on handwritten digits: {len(tiles)} validation images, evenly chosen; '
        f'detections with a score of at least {SCORE_THRESHOLD}'
    )
    draw_contact_sheet(tiles, DIGIT_CLASSES, title).save(binary.work_dir / 'contact_sheet.png')
    plot_training_curves(
        {detector.name: read_history(detector.work_dir) for detector in (binary, twin)},
        {'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP': 'AP'},
        binary.work_dir / 'curves.png',
        'FCOS on handwritten digits: binary beside its float twin',
    )


def write_summary(path: Path, results: list[Result], checkpoint: Path, seconds: float) -> None:
    """Write the figures as JSON; the first result is the binary detector, the second its twin."""
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
    return steps.format_table(('detector', 'AP', 'AP50', 'parameters', 'of them 1-bit', 'training'), rows)


if __name__ == '__main__':
    steps.run_demo(__doc__, Path('work_dirs/demo'), run)
