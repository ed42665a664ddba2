"""Binary detectors on further data: ``python benchmarks/more_detection.py``.

It uses two sets besides BCCD's three classes and the digits of the demo: only the red blood cells of BCCD (one dense
class), and boxes around the cars in CamVid's masks. Each detector uses the schedule of
configs/detection/fcos_groupnet_r18_bccd.py. tools/train.py trains it (an interrupted run resumes from its last epoch)
and evaluates it after its last epoch; the all-binary one is packed and evaluated again. Every finished run appends one
line to benchmarks/results/more_detection.jsonl and is not run again. At the end the script prints the table. It needs
data/camvid and data/bccd, see configs/segmentation/README.md and configs/detection/README.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import describe_machine, format_table  # noqa: E402
from benchmarks.trainings import box_results, collect, run_tool, test, train, write_config  # noqa: E402
from mmgroupnet.checkpoints.read import saved_checkpoints  # noqa: E402

RESULTS = Path('benchmarks/results/more_detection.jsonl')
WORK_DIR = Path('work_dirs/more_detection')
# The label of cars in CamVid's masks. Connected pixels of it form one object.
CAR = 8
# Smaller cars are left out: a frame's 20x20 pixels are 13x13 after resizing, and the finest level's stride is 8.
MIN_PIXELS = 400
_CAMVID = f"""
def mine(split):
    return dict(
        data_root='',
        ann_file=f'{WORK_DIR}/camvid_{{split}}.json',
        data_prefix=dict(img=f'data/camvid/img_dir/{{split}}/'),
        metainfo=dict(_delete_=True, classes=('car',)),
    )


# Streets, unlike cells, have a top and a bottom.
train_pipeline = [
    dict(type='RandomFlip', prob=0.5) if step.type == 'RandomFlip' else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(mine('train'), pipeline=train_pipeline))
val_dataloader = dict(dataset=mine('test'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{WORK_DIR}/camvid_test.json')
test_evaluator = val_evaluator
model = dict(bbox_head=dict(num_classes=1))
"""
_RED_CELLS = """
metainfo = dict(_delete_=True, classes=('RBC',))
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
model = dict(bbox_head=dict(num_classes=1))
"""
# Title and changes of the config, by name.
SETS = {
    'red_cells': ('red blood cells (BCCD), one class', _RED_CELLS),
    'camvid_cars': ('cars in streets (CamVid), one class', _CAMVID),
}
# Title and config, by name.
DETECTORS = {
    'float': ('float twin', 'fcos_r18_bccd'),
    'backbone': ('backbone binary', 'fcos_groupnet_r18_backbone-only_bccd'),
    'binary': ('all binary', 'fcos_groupnet_r18_bccd'),
}


class Run(NamedTuple):
    """One training.

    Attributes:
        data: As in SETS.
        detector: As in DETECTORS.
    """

    data: str
    detector: str


def boxes_of_masks(masks: Path) -> dict:
    """Boxes around the cars of CamVid's masks, in COCO's format.

    Args:
        masks: Folder of the masks.
    """
    images, annotations = [], []
    for number, path in enumerate(sorted(masks.glob('*.png'))):
        mask = np.asarray(Image.open(path))
        height, width = mask.shape
        images.append(dict(id=number, file_name=f'{path.stem}.jpg', height=height, width=width))
        _, _, parts, _ = cv2.connectedComponentsWithStats((mask == CAR).astype(np.uint8), connectivity=8)
        for x, y, w, h, pixels in parts[1:].tolist():  # the first is the background
            if pixels >= MIN_PIXELS:
                # pycocotools takes the id 0 for "no box found", so ids start at 1.
                box = dict(id=len(annotations) + 1, image_id=number, category_id=CAR, bbox=[x, y, w, h])
                annotations.append(dict(box, area=w * h, iscrowd=0))
    categories = [dict(id=CAR, name='car')]
    return dict(images=images, annotations=annotations, categories=categories)


def config_of(run: Run) -> Path:
    """Writes the config of a run, and returns its path."""
    base = ROOT / 'configs/detection' / f'{DETECTORS[run.detector][1]}.py'
    return write_config(WORK_DIR / f'{run.data}_{run.detector}.py', base, SETS[run.data][1])


def run_of(line: dict) -> Run:
    """The run of a line of results."""
    return Run(line['data'], line['detector'])


def finish(run: Run) -> dict:
    """Trains a detector and returns its line of results."""
    if run.data == 'camvid_cars':
        WORK_DIR.mkdir(parents=True, exist_ok=True)
        for split in ('train', 'test'):
            boxes = boxes_of_masks(Path('data/camvid/ann_dir_255') / split)
            (WORK_DIR / f'camvid_{split}.json').write_text(json.dumps(boxes))
    config = config_of(run)
    work_dir = config.with_suffix('')
    train(str(config), work_dir)
    line = dict(
        run._asdict(),
        **box_results(work_dir),
        machine=describe_machine(torch.get_num_threads()),
    )
    if run.detector == 'binary':
        packed = work_dir / 'packed.pth'
        run_tool('tools/deploy/pack.py', config, saved_checkpoints(work_dir)[0], '--out', packed, '--strict')
        line['AP_packed'] = test(str(config), packed, work_dir)['coco/bbox_mAP']
    return line


def results_table(lines: list[dict]) -> str:
    """The results as Markdown, set by set."""
    found = {run_of(line): line for line in lines}
    rows = []
    for data, (title, _) in SETS.items():
        for detector, (kind, _) in DETECTORS.items():
            if Run(data, detector) in found:
                line = found[Run(data, detector)]
                packed = f'{line["AP_packed"]:.3f}' if 'AP_packed' in line else ''
                minutes = f'{line["seconds"] / 60:.1f} min'
                rows.append([title, kind, f'{line["AP"]:.3f}', f'{line["AP50"]:.3f}', packed, minutes])
                title = ''
    return format_table(['data', 'detector', 'AP', 'AP50', 'AP packed', 'training'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    runs = [Run(data, detector) for data in SETS for detector in DETECTORS]
    print(f'\n{results_table(collect(RESULTS, runs, run_of, finish))}')


if __name__ == '__main__':
    main()
