from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

from mmgroupnet.datasets import CamVidDataset

REAL = Path(__file__).parents[2] / 'data' / 'camvid'
CLASSES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol', 'fence', 'car', 'pedestrian', 'bicyclist'
)  # fmt: skip


def build(root: Path, split: str = 'train') -> CamVidDataset:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(
            dict(
                type='mmgroupnet.CamVidDataset',
                data_root=str(root),
                data_prefix=dict(img_path=f'img_dir/{split}', seg_map_path=f'ann_dir_255/{split}'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
            )
        )


def test_images_and_masks_are_found_by_name(tmp_path):
    for folder in ('img_dir/train', 'ann_dir_255/train'):
        (tmp_path / folder).mkdir(parents=True)
    for value, name in enumerate(('0001TP_1', '0001TP_2')):
        cv2.imwrite(str(tmp_path / f'img_dir/train/{name}.jpg'), np.full((6, 8, 3), 100 * value, np.uint8))
        cv2.imwrite(str(tmp_path / f'ann_dir_255/train/{name}.png'), np.full((6, 8), value, np.uint8))
    dataset = build(tmp_path)
    assert len(dataset) == 2
    assert [item['gt_seg_map'].mean() for item in dataset] == [0, 1]
    assert [round(item['img'].mean()) for item in dataset] == [0, 100]


def test_classes_and_palette():
    assert CamVidDataset.METAINFO['classes'] == CLASSES
    colours = [tuple(colour) for colour in CamVidDataset.METAINFO['palette']]
    assert len(set(colours)) == len(CLASSES)


@pytest.mark.skipif(not REAL.is_dir(), reason='data/camvid is not there')
def test_the_real_set():
    sizes = {}
    for split in ('train', 'val', 'test'):
        dataset = build(REAL, split)
        sizes[split] = len(dataset)
        first = dataset[0]
        assert first['img'].shape == (360, 480, 3) and first['gt_seg_map'].shape == (360, 480)
        assert set(np.unique(first['gt_seg_map'])) <= {*range(11), 255}
    assert sizes == dict(train=367, val=101, test=233)
