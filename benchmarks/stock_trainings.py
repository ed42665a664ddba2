"""Trains stock configs by tools/train.py, on data of a few pictures: ``python benchmarks/stock_trainings.py``.

Each config of benchmarks/stock_trainings.txt is trained unchanged and with ``--binarize``, for one iteration, with a
validation and a checkpoint after it. The files of the libraries are not changed. The command line only removes
pretrained weights (they would be downloaded) and data workers, and ends the run after one iteration.

The script writes one line per run to benchmarks/results/stock_trainings.jsonl (passed runs are not repeated).
"""

import argparse
import gc
import json
import math
import os
import runpy
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from mmengine.logging import MessageHub

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from mmgroupnet.checkpoints.pretrained import find_pretrained  # noqa: E402
from mmgroupnet.engine.configs import load_config  # noqa: E402

LIST = ROOT / 'benchmarks' / 'stock_trainings.txt'
RESULTS = ROOT / 'benchmarks' / 'results' / 'stock_trainings.jsonl'
POLICY = ROOT / 'configs' / '_base_' / 'policies' / 'groupnet_k4.py'

# Pictures of each set. They have little height, so after scaling to the 1333 pixels of a detector they have few pixels.
PICTURES = 2
HEIGHT, WIDTH = 64, 512


def _picture(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def write_coco(root: Path, rng: np.random.Generator) -> None:
    """Two boxes with masks on each picture, of COCO's 80 classes."""
    from mmdet.datasets import CocoDataset

    categories = [dict(id=number, name=name) for number, name in enumerate(CocoDataset.METAINFO['classes'], start=1)]
    for split in ('train2017', 'val2017'):
        images, annotations = [], []
        for number in range(PICTURES):
            _picture(rng, root / split / f'{number}.jpg')
            images.append(dict(id=number, file_name=f'{number}.jpg', height=HEIGHT, width=WIDTH))
            for left in (40, 260):
                box = [left, 8, 120, 48]
                right, bottom = left + 120, 56
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=number, category_id=number + 1, bbox=box, area=120 * 48,
                        iscrowd=0, segmentation=[[left, 8, right, 8, right, bottom, left, bottom]],
                    )
                )  # fmt: skip
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def write_segmentation(root: Path, rng: np.random.Generator) -> None:
    """Cityscapes and ADE20K, with two classes on each picture."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 1
    for number in range(PICTURES):
        for split in ('train', 'val'):
            _picture(rng, root / f'cityscapes/leftImg8bit/{split}/a/{number}_leftImg8bit.png')
            path = root / f'cityscapes/gtFine/{split}/a/{number}_gtFine_labelTrainIds.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), mask)
        for split in ('training', 'validation'):
            _picture(rng, root / f'ade/ADEChallengeData2016/images/{split}/{number}.jpg')
            path = root / f'ade/ADEChallengeData2016/annotations/{split}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), mask + 1)  # 0 is no class there


def write_imagenet(root: Path, rng: np.random.Generator) -> None:
    """A folder for each of the 1000 classes, pictures in the first ones."""
    for split in ('train', 'val'):
        for label in range(1000):
            (root / split / f'n{label:08d}').mkdir(parents=True)
        for label in range(PICTURES):
            _picture(rng, root / split / f'n{label:08d}' / '0.JPEG')


def options_of(name: str) -> list[str]:
    """The options of the command line besides the config."""
    cfg = load_config(name)
    options = [f'{path}=None' for *_, path, _ in find_pretrained(cfg.model)]
    for loader in ('train_dataloader', 'val_dataloader'):
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    if cfg.train_cfg.get('by_epoch') or 'max_epochs' in cfg.train_cfg:  # all pictures are one batch
        return [*options, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    return [*options, 'train_cfg.max_iters=1', 'train_cfg.val_interval=1']


@contextmanager
def arguments(*words: str) -> Iterator[None]:
    """The command line of a tool."""
    with mock.patch.object(sys, 'argv', list(words)):
        yield


def train(name: str, binarize: bool) -> dict:
    """One run of tools/train.py in the current folder.

    Returns:
        Its row: ``result`` is 'pass' or 'fail', and ``reason`` why.
    """
    began = time.process_time()
    row = dict(config=name, binarize=binarize, result='pass', reason='')
    # mmengine's visualizers outlive their runs and write into the first run's folder, so it is kept.
    work_dir = Path('work_dirs') / f'{Path(name).stem}_{binarize}'
    try:
        row['options'] = options_of(name)
        words = ['--binarize', str(POLICY)] if binarize else []
        with arguments('train.py', name, '--work-dir', str(work_dir), *words, '--cfg-options', *row['options']):
            runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
        row['loss'] = float(MessageHub.get_current_instance().get_scalar('train/loss').current())
        row['checkpoint'] = next(path.name for path in work_dir.glob('*_1.pth'))
        if not math.isfinite(row['loss']):
            raise ValueError(f'the loss is {row["loss"]}')
    except (Exception, SystemExit) as error:  # Any error is the result of that config.
        traceback.print_exc()
        row.update(result='fail', reason=f'{type(error).__name__}: {str(error)[:300]}')
    for path in work_dir.glob('*.pth'):
        path.unlink()
    row['cpu_seconds'] = round(time.process_time() - began, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description='Trains stock configs for one iteration')
    parser.add_argument('configs', nargs='*', help='only these (default: all of benchmarks/stock_trainings.txt)')
    parser.add_argument('--out', type=Path, default=RESULTS, help='default: benchmarks/results/stock_trainings.jsonl')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    out = args.out.absolute()
    listed = [line for line in LIST.read_text().splitlines() if line and not line.startswith('#')]
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row['config'], row['binarize']) for row in rows if row['result'] == 'pass'}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rng = np.random.default_rng(0)
        write_coco(Path('data/coco'), rng)
        write_segmentation(Path('data'), rng)
        write_imagenet(Path('data/imagenet'), rng)
        for binarize in (False, True):
            for name in args.configs or listed:
                if (name, binarize) in done:
                    continue
                row = train(name, binarize)
                with out.open('a') as file:
                    file.write(json.dumps(row) + '\n')
                gc.collect()
        os.chdir(ROOT)


if __name__ == '__main__':
    main()
