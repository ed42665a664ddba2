"""Compares binary detectors with their float twin on BCCD, on one schedule: ``python benchmarks/bccd_detection.py``.

tools/train.py trains each config (an interrupted run resumes from its last epoch) and evaluates it on the test split
after its last epoch. Every finished run appends one line to benchmarks/results/bccd_detection.jsonl; configs with a
line there are not run again. At the end the script prints the table. It needs data/bccd, see
configs/detection/README.md.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import format_table  # noqa: E402
from benchmarks.trainings import box_results, collect, train  # noqa: E402

RESULTS = Path('benchmarks/results/bccd_detection.jsonl')
CONFIGS = {
    'fcos_r18_bccd': 'float twin',
    'fcos_groupnet_r18_bccd': 'all binary, Group-Net**',
    'fcos_groupnet_r18_backbone-only_bccd': 'backbone binary, Group-Net**',
    'fcos_groupnet_r18_binary-downsample_bccd': 'all binary, binary downsampling',
}


def run(name: str) -> dict:
    """Trains one config and returns its line of results."""
    import torch

    from mmgroupnet.engine.model_report import count_parameters

    config, work_dir = f'configs/detection/{name}.py', Path('work_dirs/bccd') / name
    train(config, work_dir)
    parameters, binary_parameters = count_parameters(config)
    return dict(
        config=config,
        **box_results(work_dir),
        parameters=parameters,
        binary_parameters=binary_parameters,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def name_of(line: dict) -> str:
    """The config of a line of results, as in CONFIGS."""
    return Path(line['config']).stem


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, in the order of CONFIGS."""
    found = {name_of(line): line for line in lines}
    rows = []
    for name, title in CONFIGS.items():
        if name in found:
            line = found[name]
            rows.append(
                [
                    title,
                    f'[{name}]({name}.py)',
                    f'{line["AP"]:.3f}',
                    f'{line["AP50"]:.3f}',
                    f'{line["parameters"] / 1e6:.2f} M',
                    f'{line["binary_parameters"] / line["parameters"]:.0%}',
                    f'{line["seconds"] / 60:.1f} min',
                ]
            )
    return format_table(['network', 'config', 'AP', 'AP50', 'parameters', 'of them 1-bit', 'training'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    print(f'\n{results_table(collect(RESULTS, list(CONFIGS), name_of, run))}')


if __name__ == '__main__':
    main()
