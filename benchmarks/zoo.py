"""Trains the model zoo: ``python benchmarks/zoo.py [NAME ...]``.

tools/train.py trains each network (an interrupted run resumes from its last epoch); then it is packed and exported. All
files are written to work_dirs/zoo/NAME: the whole config, float.pth, packed.pth and model.onnx; tools/test.py evaluates
the last three. A finished network appends one line to benchmarks/results/zoo.jsonl and is not trained again. The
repository does not contain weights: this command makes them, after ``make runtime``. The README in the folder of its
config says which data a network needs.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.
# An installed mmgroupnet_runtime comes first, as for the tools.
sys.path.append(str(ROOT / 'runtime' / 'src'))

from mmgroupnet_runtime import UserError, library_path  # noqa: E402

from benchmarks.timing import describe_machine, format_table  # noqa: E402
from benchmarks.trainings import collect, run_tool, test, train  # noqa: E402
from mmgroupnet.analysis.training_curves import training_seconds  # noqa: E402
from mmgroupnet.checkpoints.read import read_checkpoint, saved_checkpoints  # noqa: E402
from mmgroupnet.checkpoints.write import write_checkpoint  # noqa: E402
from mmgroupnet.engine.configs import load_config  # noqa: E402

RESULTS = Path('benchmarks/results/zoo.jsonl')
ZOO = Path('work_dirs/zoo')
FILES = ('float.pth', 'packed.pth', 'model.onnx')


class Entry(NamedTuple):
    """A network of the zoo.

    Attributes:
        title: Its title in the table.
        config: Its config, below configs/.
        metric: The metric in the table, by its name in tools/test.py.
        amp: Whether tools/train.py gets ``--amp``. Default: False.
    """

    title: str
    config: str
    metric: str
    amp: bool = False


ENTRIES = {
    Path(entry.config).stem: entry
    for entry in (
        Entry('digits, FCOS, K = 3', 'demo/fcos_groupnet_digits.py', 'coco/bbox_mAP'),
        Entry('digits, FCN-8s, K = 3', 'demo/fcn-8s_groupnet_digits-seg.py', 'mIoU'),
        Entry('BCCD, FCOS, K = 4', 'detection/fcos_groupnet_r18_bccd.py', 'coco/bbox_mAP'),
        Entry('CamVid, FCN-32s, K = 4', 'segmentation/fcn-32s_groupnet_r18_camvid-240x180.py', 'mIoU'),
        Entry(
            'CIFAR-10, ResNet-20, K = 3',
            'classification/groupnet_r20_k3_distilled_cifar10.py',
            'accuracy/top1',
            amp=True,
        ),
    )
}


def name_of(line: dict) -> str:
    """The network of a line of results, as in ENTRIES."""
    return line['name']


def finish(name: str) -> dict:
    """Trains, packs, exports and evaluates a network, and returns its line of results."""
    entry, work_dir, folder = ENTRIES[name], ZOO / name / 'training', ZOO / name
    train(f'configs/{entry.config}', work_dir, amp=entry.amp)
    config = str(folder / f'{name}.py')
    load_config(f'configs/{entry.config}').dump(config)
    trained = read_checkpoint(saved_checkpoints(work_dir)[0], 'cpu')
    write_checkpoint({key: trained[key] for key in ('meta', 'state_dict')}, folder / 'float.pth')
    run_tool('tools/deploy/pack.py', config, folder / 'float.pth', '--out', folder / 'packed.pth', '--strict')
    run_tool('tools/deploy/export_onnx.py', config, folder / 'float.pth', '--out', folder / 'model.onnx', '--strict')
    return dict(
        name=name,
        config=f'configs/{entry.config}',
        metric=entry.metric,
        values={file: test(config, folder / file, work_dir)[entry.metric] for file in FILES},
        bytes={file: (folder / file).stat().st_size for file in FILES},
        seconds=round(training_seconds(work_dir)),
        machine=describe_machine(torch.get_num_threads()),
    )


def results_table(lines: list[dict]) -> str:
    """The zoo as Markdown, in the order of ENTRIES."""
    found = {name_of(line): line for line in lines}
    rows = []
    for name, entry in ENTRIES.items():
        if name in found:
            line = found[name]
            cells = [f'{line["values"][file]:.4g}, {line["bytes"][file] / 1e6:.2f} MB' for file in FILES]
            rows.append([entry.title, entry.metric.rpartition('/')[2], *cells, f'{line["seconds"] / 60:.0f} min'])
    return format_table(['network', 'metric', *FILES, 'training'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'default: all of {", ".join(ENTRIES)}')
    args = parser.parse_args()
    unknown = set(args.names) - set(ENTRIES)
    if unknown:
        parser.error(f'{", ".join(sorted(unknown))}: the zoo has {", ".join(ENTRIES)}')
    try:
        library_path()  # It evaluates model.onnx. Without it, the network would be trained first.
    except UserError as error:
        parser.error(str(error))
    os.chdir(ROOT)
    print(f'\n{results_table(collect(RESULTS, args.names or list(ENTRIES), name_of, finish))}')


if __name__ == '__main__':
    main()
