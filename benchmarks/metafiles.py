"""Writes the ``Models`` of configs/*/metafile.yml, for MIM: ``python benchmarks/metafiles.py``.

They list all configs, with the figures from the files of results. The part above ``Models:`` in a metafile is written
by hand. Run the script after a benchmark, or when a config was added; a test compares the files.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks import bccd_detection, camvid_segmentation, digits_detection, zoo  # noqa: E402
from benchmarks.trainings import read_lines  # noqa: E402

FOLDERS = ('binarized', 'classification', 'detection', 'segmentation')
# The data that a config is trained on, by the end of its name.
DATA = {
    'bccd': 'BCCD',
    'camvid-240x180': 'CamVid',
    'camvid-480x360': 'CamVid',
    'cifar10': 'CIFAR-10',
    'cityscapes-512x1024': 'Cityscapes',
    'coco': 'COCO',
    'digits': 'Digits',
    'digits-seg': 'Digits',
    'in1k': 'ImageNet-1k',
    'voc12aug-480x480': 'PASCAL VOC 2012',
}
# Keys of a line of results, and their names in metafiles.
_METADATA = {'epochs': 'Epochs', 'parameters': 'Parameters', 'binary_parameters': 'Binary Parameters'}
# Task and name in metafiles of a metric of the zoo, where no other benchmark has the network.
_OF_METRIC = {
    'accuracy/top1': ('Image Classification', 'Top 1 Accuracy'),
    'mIoU': ('Semantic Segmentation', 'mIoU'),
}


def configs_of(folder: str) -> Iterator[Path]:
    """The configs that a metafile lists.

    Configs of the demos, and those outside a folder, are listed with the folder of their task.

    Args:
        folder: One of :data:`FOLDERS`.
    """
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        place = path.relative_to(ROOT / 'configs').parts[0]
        if place in ('demo', path.name):
            place = 'segmentation' if path.stem.endswith('-seg') else 'detection'
        if place == folder:
            yield path


def results() -> dict[str, tuple[dict, str, dict]]:
    """The results by config name: metadata, task and metrics; those of the zoo for configs without a benchmark of
    their own."""
    detection, segmentation = 'Object Detection', 'Semantic Segmentation'
    found = {}
    for line in read_lines(ROOT / bccd_detection.RESULTS):
        metadata = {title: line[key] for key, title in _METADATA.items()}
        found[bccd_detection.name_of(line)] = metadata, detection, _precision(line)
    lines = {line['variant']: line for line in read_lines(ROOT / digits_detection.RESULTS)}
    for variant, name in (('binary', digits_detection.BINARY), ('twin', digits_detection.TWIN)):
        found[name] = {'Epochs': lines[variant]['epochs']}, detection, _precision(lines[variant])
    lines = read_lines(ROOT / camvid_segmentation.RESULTS)
    for name in camvid_segmentation.CONFIGS:
        scores = [line['mIoU'] for line in lines if camvid_segmentation.run_of(line).name == name]
        found[name] = {'Seeds': len(scores)}, segmentation, {'mIoU': round(statistics.mean(scores), 1)}
    for line in read_lines(ROOT / zoo.RESULTS):
        if zoo.name_of(line) not in found:
            task, metric = _OF_METRIC[line['metric']]
            found[zoo.name_of(line)] = {}, task, {metric: round(line['values']['float.pth'], 1)}
    return found


def _precision(line: dict) -> dict:
    return {'box AP': line['AP'], 'box AP50': line['AP50']}


def fill(folder: str) -> str:
    """The metafile of a folder with its models.

    Args:
        folder: One of :data:`FOLDERS`.
    """
    head = path_of(folder).read_text().partition('\nModels:')[0].rstrip()
    (collection,) = yaml.safe_load(head)['Collections']
    measured = results()
    models = []
    for path in configs_of(folder):
        name = path.stem
        data = DATA[name.rpartition('_')[2]]
        model = {
            'Name': name,
            'In Collection': collection['Name'],
            'Config': str(path.relative_to(ROOT)),
            'Metadata': {'Training Data': data},
        }
        if name in measured:
            metadata, task, metrics = measured[name]
            model['Metadata'] |= metadata
            model['Results'] = [{'Task': task, 'Dataset': data, 'Metrics': metrics}]
        models.append(model)
    return f'{head}\n\n{yaml.safe_dump(dict(Models=models), sort_keys=False)}'


def path_of(folder: str) -> Path:
    """The metafile of a folder."""
    return ROOT / 'configs' / folder / 'metafile.yml'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for folder in FOLDERS:
        path_of(folder).write_text(fill(folder))


if __name__ == '__main__':
    main()
