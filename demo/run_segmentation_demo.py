"""The demo of segmentation: train a small binary FCN-8s on real handwritten digits, and draw its predictions.

``make demo-seg`` runs this. The steps are commands that you can also run one by one: the generator of the data,
``tools/train.py`` and ``tools/test.py``. An interrupted run continues where it stopped. A finished run is renamed to
``<work dir>_previous`` when the demo runs again.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # This checkout comes before an installed mmgroupnet.

from demo import steps

CONFIG = 'configs/demo/fcn-8s_groupnet_digits-seg.py'
NUM_STEPS = 4
NUM_ROWS = 6


def run(work_dir: Path, cfg_options: list[str]) -> None:
    """Run all steps and print the figures.

    Args:
        work_dir: Folder of the results.
        cfg_options: ``KEY=VALUE`` overrides for the config.
    """
    from mmgroupnet.datasets import generate_digits
    from mmgroupnet.engine.model_report import count_parameters

    stopwatch = steps.Stopwatch(work_dir / 'seconds.json', NUM_STEPS)
    with stopwatch.step('generate the digits'):
        print(f'They are in {generate_digits(steps.DATA_ROOT)}/.')
    with stopwatch.step('train the binary segmentor'):
        steps.train(CONFIG, work_dir, cfg_options)
    overlays = work_dir / 'overlays'
    with stopwatch.step('evaluate it'):
        metrics = steps.evaluate(CONFIG, work_dir, cfg_options, '--show-dir', overlays)
    checkpoint = steps.last_checkpoint(work_dir)
    with stopwatch.step('draw the results'):
        draw_results(work_dir, checkpoint, metrics['mIoU'])

    summary = {name: metrics[name] / 100 for name in ('mIoU', 'mAcc', 'aAcc')}
    summary.update(checkpoint=str(checkpoint), seconds=round(stopwatch.total))
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    parameters, binary_parameters = count_parameters(CONFIG)
    row = (
        'binary FCN-8s',
        *(f'{summary[name]:.3f}' for name in ('mIoU', 'mAcc', 'aAcc')),
        f'{parameters:,}',
        f'{binary_parameters / parameters:.0%}',
        f'{stopwatch.seconds["train the binary segmentor"]:.0f} s',
    )
    header = ('segmentor', 'mIoU', 'mAcc', 'aAcc', 'parameters', 'of them 1-bit', 'training')
    print(f'\n{steps.format_table(header, [row])}\n')
    places = [
        (work_dir / 'segmentations.png', 'segmentations beside ground truth'),
        (overlays, 'the same of every validation image'),
        (work_dir / 'summary.json', 'these figures'),
        (checkpoint, 'the segmentor, for tools/predict.py and tools/test.py'),
    ]
    steps.print_places(places, stopwatch.total)


def draw_results(work_dir: Path, checkpoint: Path, miou: float) -> None:
    """Write ``segmentations.png`` into the work directory."""
    import numpy as np
    from mmengine.config import Config
    from PIL import Image

    from mmgroupnet.analysis.segmentation_sheet import Row, draw_segmentation_sheet, predict_maps

    images = sorted((steps.DATA_ROOT / 'val').glob('*.jpg'))
    images = [images[index] for index in np.linspace(0, len(images) - 1, NUM_ROWS).round().astype(int)]
    rows = []
    for image, seen in zip(images, predict_maps(CONFIG, checkpoint, images), strict=True):
        truth = np.asarray(Image.open(steps.DATA_ROOT / 'masks' / 'val' / f'{image.stem}.png'))
        maps = {'ground truth': np.where(truth, truth, 255), 'binary FCN-8s': np.where(seen, seen, 255)}
        rows.append(Row(np.asarray(Image.open(image).convert('RGB')), maps))
    metainfo = Config.fromfile(CONFIG).metainfo
    title = f'Handwritten digits, {NUM_ROWS} validation images, evenly chosen (mIoU {miou:.1f} %)'
    sheet = draw_segmentation_sheet(rows, metainfo['classes'], metainfo['palette'], title)
    sheet.save(work_dir / 'segmentations.png')


if __name__ == '__main__':
    steps.run_demo(__doc__, Path('work_dirs/demo-seg'), run)
