"""FCN-32s on CamVid, float and binary, without and with BPAC: ``python benchmarks/camvid_segmentation.py``.

Each run is trained by tools/train.py (one that was cut off goes on from its last epoch) and its last epoch evaluated on
the test split by tools/test.py. Every finished run appends one line to benchmarks/results/camvid_segmentation.jsonl;
runs with a line there are not made again. At the end the table is printed. Needs data/camvid, see
configs/segmentation/README.md.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.trainings import append_line, read_lines, test, train  # noqa: E402

RESULTS = Path('benchmarks/results/camvid_segmentation.jsonl')
FOLDER = 'configs/segmentation'
# Title and number of seeds by config.
CONFIGS = {
    'fcn-32s_r18_camvid-240x180': ('float twin', 1),
    'fcn-32s_groupnet_r18_camvid-240x180': ('Group-Net', 3),
    'fcn-32s_groupnet_r18_bpac_camvid-240x180': ('Group-Net + BPAC', 3),
    'fcn-32s_groupnet_r18_bpac_float-downsample_camvid-240x180': ('Group-Net** + BPAC', 1),
}


def run(name: str, seed: int) -> dict:
    """Trains and evaluates a config with a seed, and returns its line of results."""
    import torch

    from mmgroupnet.analysis.training_curves import training_seconds
    from mmgroupnet.engine.checkpoint import saved_checkpoints
    from mmgroupnet.engine.model_report import count_parameters

    config, work_dir = f'{FOLDER}/{name}.py', Path('work_dirs/camvid') / f'{name}_seed{seed}'
    train(config, work_dir, f'randomness.seed={seed}')
    metrics = test(config, saved_checkpoints(work_dir)[0], work_dir)
    parameters, binary_parameters = count_parameters(config)
    return dict(
        config=config,
        seed=seed,
        **{metric: metrics[metric] for metric in ('mIoU', 'mAcc', 'aAcc')},
        parameters=parameters,
        binary_parameters=binary_parameters,
        seconds=round(training_seconds(work_dir)),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def print_table(lines: list[dict]) -> None:
    """Prints the results as Markdown, mean and spread (largest minus smallest) over the seeds."""
    print('\n| network | config | mIoU | spread | seeds | parameters | of them 1-bit | training of a run |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- |')
    for name, (title, _) in CONFIGS.items():
        found = [line for line in lines if Path(line['config']).stem == name]
        if found:
            scores = [line['mIoU'] for line in found]
            spread = f'{max(scores) - min(scores):.1f}' if len(scores) > 1 else ''
            share = found[0]['binary_parameters'] / found[0]['parameters']
            print(
                f'| {title} | [{name}]({name}.py) | {statistics.mean(scores):.1f} | {spread} | {len(scores)} | '
                f'{found[0]["parameters"] / 1e6:.2f} M | {share:.0%} | '
                f'{max(line["seconds"] for line in found) / 60:.1f} min |'
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    lines = read_lines(RESULTS)
    # Seed by seed, so that a table that is not finished compares as many runs of each.
    for seed in range(max(seeds for _, seeds in CONFIGS.values())):
        for name, (_, seeds) in CONFIGS.items():
            is_done = any(Path(line['config']).stem == name and line['seed'] == seed for line in lines)
            if seed < seeds and not is_done:
                lines.append(run(name, seed))
                append_line(RESULTS, lines[-1])
    print_table(lines)


if __name__ == '__main__':
    main()
