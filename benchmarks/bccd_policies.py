"""Makes a stock RetinaNet binary by the ready policies and trains it on BCCD: ``python benchmarks/bccd_policies.py``.

tools/train.py trains configs/binarized/retinanet_r18_half_bccd.py, float and with ``--binarize`` (an interrupted run
resumes from its last epoch), and evaluates it on the test split after its last epoch. Every finished run appends one
line to benchmarks/results/bccd_policies.jsonl and is not run again. At the end the script prints the table. It needs
data/bccd, see configs/detection/README.md.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import describe_machine, format_table  # noqa: E402
from benchmarks.trainings import box_results, collect, run_tool  # noqa: E402
from mmgroupnet.engine.model_report import count_parameters  # noqa: E402

RESULTS = Path('benchmarks/results/bccd_policies.jsonl')
CONFIG = Path('configs/binarized/retinanet_r18_half_bccd.py')
FLOAT = 'float'
# The binary parts, by policy.
POLICIES = {
    FLOAT: 'nothing',
    'groupnet_k4_backbone': 'backbone',
    'groupnet_k4_backbone-neck': 'backbone, neck',
    'groupnet_k4': 'backbone, neck, head (the default)',
    'groupnet_k4_float-downsample': 'so, but for the 1x1 convs of shortcuts',
}


def policy_of(line: dict) -> str:
    """The policy of a line of results, as in POLICIES."""
    return line['policy']


def finish(policy: str) -> dict:
    """Trains the detector with a policy and returns its line of results."""
    work_dir = Path('work_dirs/bccd_policies') / policy
    options = [] if policy == FLOAT else ['--binarize', f'configs/_base_/policies/{policy}.py']
    run_tool('tools/train.py', CONFIG, '--work-dir', work_dir, '--resume', *options)
    parameters, binary_parameters = count_parameters(str(work_dir / CONFIG.name))
    return dict(
        policy=policy,
        **box_results(work_dir),
        parameters=parameters,
        binary_parameters=binary_parameters,
        machine=describe_machine(torch.get_num_threads()),
    )


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, in the order of POLICIES."""
    found = {policy_of(line): line for line in lines}
    rows = []
    for policy, title in POLICIES.items():
        if policy in found:
            line = found[policy]
            link = '' if policy == FLOAT else f'[{policy}](../_base_/policies/{policy}.py)'
            share = f'{line["binary_parameters"] / line["parameters"]:.1%}'
            rows.append([title, link, f'{line["AP"]:.3f}', f'{line["AP50"]:.3f}', share, line['epochs']])
    return format_table(['binary', 'policy', 'AP', 'AP50', '1-bit parameters', 'epochs'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    print(f'\n{results_table(collect(RESULTS, list(POLICIES), policy_of, finish))}')


if __name__ == '__main__':
    main()
