"""The embedded digits as a classification set."""

import json

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pycocotools.coco import COCO

from mmgroupnet.datasets import DIGIT_CLASSES, DigitCrops, generate_digits
from mmgroupnet.errors import UserError


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return generate_digits(tmp_path_factory.mktemp('digits') / 'digits', num_train=12, num_val=3)


def test_one_sample_for_every_digit_of_the_detection_set(source):
    for split in ('train', 'val'):
        coco = COCO(str(source / f'annotations/instances_{split}.json'))
        dataset = DigitCrops(split, source)
        assert [sample['gt_label'] for sample in dataset] == [
            annotation['category_id'] - 1
            for image in coco.getImgIds()
            for annotation in coco.loadAnns(coco.getAnnIds(image))
        ]
    assert dataset.metainfo['classes'] == DIGIT_CLASSES


def test_a_crop_is_the_square_around_the_box_and_repeats_the_border(tmp_path):
    """The red value of a pixel is its column and the green value its row, so a crop shows its position."""
    rows, columns = np.mgrid[:100, :120].astype(np.uint8)
    (tmp_path / 'train').mkdir()
    cv2.imwrite(str(tmp_path / 'train' / 'a.png'), np.dstack([np.zeros_like(rows), rows, columns]))
    boxes = [[40, 20, 20, 40], [0, 50, 20, 10]]
    content = dict(
        images=[dict(id=1, file_name='a.png')],
        annotations=[dict(id=i, image_id=1, category_id=i + 3, bbox=box) for i, box in enumerate(boxes)],
        categories=[dict(id=i + 1, name=str(i)) for i in range(10)],
    )
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_train.json').write_text(json.dumps(content))
    first, second = DigitCrops('train', tmp_path, image_size=8)
    assert (first['gt_label'], second['gt_label']) == (2, 3)
    # Squares with sides of 48 = 1.2 * 40 and 24 become eight pixels; each is the mean of the area that it covers.
    steps = np.arange(8) + 0.5
    assert_allclose(first['img'][0, :, 2], 50 - 24 + 6 * steps - 0.5, atol=1)
    assert_allclose(first['img'][:, 0, 1], 40 - 24 + 6 * steps - 0.5, atol=1)
    assert_allclose(second['img'][0, :, 2], np.maximum(10 - 12 + 3 * steps - 0.5, 0), atol=1)
    assert_allclose(second['img'][:, 0, 1], 55 - 12 + 3 * steps - 0.5, atol=1)
    assert not first['img'][..., 0].any()


def test_the_set_is_made_on_first_use(tmp_path, monkeypatch):
    from mmgroupnet.datasets import digit_crops

    monkeypatch.setattr(digit_crops, 'generate_digits', lambda folder: generate_digits(folder, num_train=2, num_val=1))
    dataset = DigitCrops('val', tmp_path / 'digits', image_size=40)
    assert 3 <= len(dataset) <= 5 and dataset[0]['img'].shape == (40, 40, 3)


def test_another_split_is_refused(source):
    with pytest.raises(ValueError, match="split='test': the digits have 'train' and 'val'"):
        DigitCrops('test', source)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    generate_digits(tmp_path / 'digits', num_train=1, num_val=1)
    (picture,) = (tmp_path / 'digits' / 'val').glob('*.jpg')
    picture.write_bytes(b'no picture')
    with pytest.raises(UserError, match=f'{picture} cannot be read: delete {tmp_path}/digits, and it is made again'):
        DigitCrops('val', tmp_path / 'digits')[0]
