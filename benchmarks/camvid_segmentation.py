"""FCN-32s on CamVid, float and binary, without and with BPAC: ``python benchmarks/camvid_segmentation.py``.

tools/train.py trains each run (an interrupted run resumes from its last epoch), and tools/test.py evaluates its last
epoch on the test split. Every finished run appends one line to benchmarks/results/camvid_segmentation.jsonl; runs with
a line there are not made again. At the end the script prints the table, and draws three test frames into
docs/images/camvid.jpg if the checkpoints are still in work_dirs/camvid. It needs data/camvid, see
configs/segmentation/README.md.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import format_table  # noqa: E402
from benchmarks.trainings import collect, test, train  # noqa: E402

RESULTS = Path('benchmarks/results/camvid_segmentation.jsonl')
FIGURE = Path('docs/images/camvid.jpg')
NUM_FRAMES = 3
FOLDER = 'configs/segmentation'
# Title and number of seeds by config.
CONFIGS = {
    'fcn-32s_r18_camvid-240x180': ('float twin', 1),
    'fcn-32s_groupnet_r18_camvid-240x180': ('Group-Net', 3),
    'fcn-32s_groupnet_r18_bpac_camvid-240x180': ('Group-Net + BPAC', 3),
    'fcn-32s_groupnet_r18_bpac_float-downsample_camvid-240x180': ('Group-Net** + BPAC', 1),
    'fcn-32s_groupnet_r18_camvid-480x360': ('Group-Net, whole frames', 2),
    'fcn-32s_groupnet_r18_bpac_camvid-480x360': ('Group-Net + BPAC, whole frames', 2),
}
# The two of them that differ only in their rates.
DRAWN = ('fcn-32s_groupnet_r18_camvid-240x180', 'fcn-32s_groupnet_r18_bpac_camvid-240x180')


class Run(NamedTuple):
    """One training.

    Attributes:
        name: Config, as in CONFIGS.
        seed: Seed of the run.
    """

    name: str
    seed: int


def run_of(line: dict) -> Run:
    """The run of a line of results."""
    return Run(Path(line['config']).stem, line['seed'])


def config_of(name: str) -> str:
    """The file of a config."""
    return f'{FOLDER}/{name}.py'


def work_dir_of(run: Run) -> Path:
    """The work directory of a run."""
    return Path('work_dirs/camvid') / f'{run.name}_seed{run.seed}'


def finish(run: Run) -> dict:
    """Trains and evaluates, and returns the line of results."""
    import torch

    from mmgroupnet.analysis.training_curves import training_seconds
    from mmgroupnet.checkpoints.read import saved_checkpoints

    config, work_dir = config_of(run.name), work_dir_of(run)
    train(config, work_dir, f'randomness.seed={run.seed}')
    metrics = test(config, saved_checkpoints(work_dir)[0], work_dir)
    return dict(
        config=config,
        seed=run.seed,
        **{metric: metrics[metric] for metric in ('mIoU', 'mAcc', 'aAcc')},
        seconds=round(training_seconds(work_dir)),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, mean and spread (largest minus smallest) over the seeds."""
    from mmgroupnet.engine.model_report import measure_complexity

    header = ['network', 'config', 'mIoU', 'spread', 'seeds', 'parameters', 'of them 1-bit', 'MB packed', 'OPs']
    rows = []
    for name, (title, _) in CONFIGS.items():
        found = [line for line in lines if run_of(line).name == name]
        if not found:
            continue
        scores = [line['mIoU'] for line in found]
        spread = f'{max(scores) - min(scores):.1f}' if len(scores) > 1 else ''
        whole = measure_complexity(config_of(name))
        rows.append(
            [
                title,
                f'[{name}]({name}.py)',
                f'{statistics.mean(scores):.1f}',
                spread,
                len(scores),
                f'{whole.parameters / 1e6:.2f} M',
                f'{whole.binary_parameters / whole.parameters:.0%}',
                f'{whole.bytes_packed / 1e6:.2f}',
                f'{whole.ops / 1e9:.2f} G',
                f'{max(line["seconds"] for line in found) / 60:.1f} min',
            ]
        )
    return format_table([*header, 'training of a run'], rows)


def draw_frames(lines: list[dict]) -> None:
    """Draws evenly chosen test frames, with the predictions of Group-Net (seed 0) without and with BPAC."""
    import numpy as np
    from PIL import Image

    from mmgroupnet.analysis.segmentation_sheet import Row, draw_segmentation_sheet, predict_maps
    from mmgroupnet.checkpoints.read import saved_checkpoints
    from mmgroupnet.datasets import CamVidDataset

    checkpoints = {name: saved_checkpoints(work_dir_of(Run(name, 0))) for name in DRAWN}
    missing = [str(work_dir_of(Run(name, 0))) for name, found in checkpoints.items() if not found]
    if missing:
        print(f'{FIGURE} stays as it is: no checkpoints in {", ".join(missing)}')
        return
    frames = sorted(Path('data/camvid/img_dir/test').glob('*.jpg'))
    frames = [frames[index] for index in np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)]
    truths = [Path('data/camvid/ann_dir_255/test') / f'{frame.stem}.png' for frame in frames]
    maps = {'ground truth': [np.asarray(Image.open(truth)) for truth in truths]}
    for name in DRAWN:
        title, _ = CONFIGS[name]
        (miou,) = (line['mIoU'] for line in lines if run_of(line) == (name, 0))
        maps[f'{title} (mIoU {miou:.1f} %)'] = predict_maps(config_of(name), checkpoints[name][0], frames)
    rows = [
        Row(np.asarray(Image.open(frame).convert('RGB')), {column: found[index] for column, found in maps.items()})
        for index, frame in enumerate(frames)
    ]
    classes, palette = CamVidDataset.METAINFO['classes'], CamVidDataset.METAINFO['palette']
    title = f'CamVid, {NUM_FRAMES} test frames, evenly chosen'
    draw_segmentation_sheet(rows, classes, palette, title).save(FIGURE, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    # Seed by seed, so that an unfinished table compares equal numbers of runs.
    runs = [
        Run(name, seed)
        for seed in range(max(seeds for _, seeds in CONFIGS.values()))
        for name, (_, seeds) in CONFIGS.items()
        if seed < seeds
    ]
    lines = collect(RESULTS, runs, run_of, finish)
    print(f'\n{results_table(lines)}')
    draw_frames(lines)


if __name__ == '__main__':
    main()
