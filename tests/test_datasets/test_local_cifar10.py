"""CIFAR-10 from files on the disk."""

import pickle

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

NUM_PER_BATCH = 3


@pytest.fixture
def batches(tmp_path):
    """Files in the layout of the Python version. The green value of all pixels is the number of the image; one pixel is
    blue."""
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for index, name in enumerate([*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch']):
        numbers = index * NUM_PER_BATCH + np.arange(NUM_PER_BATCH)
        images = np.zeros((NUM_PER_BATCH, 3, 32, 32), np.uint8)
        images[:, 1] = numbers[:, None, None]  # green
        images[:, 2, 5, 7] = 200  # one blue pixel, in row 5
        content = {'data': images.reshape(NUM_PER_BATCH, -1), 'labels': [int(number) % 10 for number in numbers]}
        (folder / name).write_bytes(pickle.dumps(content))
    return tmp_path


def build(root, **kwargs):
    config = dict(type='mmgroupnet.LocalCIFAR10', data_root=str(root), pipeline=[], **kwargs)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(config)


@pytest.mark.parametrize(('split', 'numbers'), [('train', range(15)), ('test', range(15, 18))])
def test_images_and_labels_of_a_split(split, numbers, batches):
    dataset = build(batches, split=split)
    assert len(dataset) == len(numbers)
    for sample, number in zip(dataset, numbers, strict=True):
        assert sample['img'].shape == (32, 32, 3) and sample['img'].dtype == np.uint8
        assert (sample['img'][..., 1] == number).all()
        assert np.argwhere(sample['img'][..., 0] == 200).tolist() == [[5, 7]]
        assert sample['gt_label'] == number % 10
    assert dataset.metainfo['classes'][3] == 'cat'


def test_another_split_is_refused(batches):
    with pytest.raises(ValueError, match="split='val': CIFAR-10 has 'train' and 'test'"):
        build(batches, split='val')
