import json
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmgroupnet.datasets import DIGIT_CLASSES, generate_digits
from mmgroupnet.datasets import digits as module
from mmgroupnet.errors import UserError

NUM_TRAIN, NUM_VAL = 40, 20


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    return generate_digits(tmp_path_factory.mktemp('data') / 'digits', NUM_TRAIN, NUM_VAL)


def load(data_root: Path, split: str) -> dict:
    return json.loads((data_root / 'annotations' / f'instances_{split}.json').read_text())


def files(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('split, number', [('train', NUM_TRAIN), ('val', NUM_VAL)])
class TestAnnotations:
    def test_counts_and_ids(self, data_root, split, number):
        coco = load(data_root, split)
        assert [image['id'] for image in coco['images']] == list(range(1, number + 1))
        assert {image['file_name'] for image in coco['images']} == {p.name for p in (data_root / split).iterdir()}
        per_image = Counter(annotation['image_id'] for annotation in coco['annotations'])
        assert len(per_image) == number
        assert set(per_image.values()) <= {3, 4, 5}
        assert [category['name'] for category in coco['categories']] == list(DIGIT_CLASSES)

    def test_images_have_the_stated_size(self, data_root, split, number):
        for image in load(data_root, split)['images']:
            picture = cv2.imread(str(data_root / split / image['file_name']))
            assert picture.shape == (160, 160, 3) == (image['height'], image['width'], 3)

    def test_boxes_are_tight_around_the_masks(self, data_root, split, number):
        for annotation in load(data_root, split)['annotations']:
            mask = coco_mask.decode(annotation['segmentation'])
            rows, columns = np.nonzero(mask)
            x, y, w, h = annotation['bbox']
            assert mask.shape == (160, 160)  # the size of the image, so the box lies inside it
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w - 1, y + h - 1) == (columns.max(), rows.max())
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0

    def test_sizes_and_angles(self, data_root, split, number):
        annotations = load(data_root, split)['annotations']
        heights = [annotation['bbox'][3] for annotation in annotations]
        assert 30 <= min(heights) and max(heights) <= 93  # a rotated cell of 80 pixels is 93 high
        angles = [annotation['angle'] for annotation in annotations]
        assert max(map(abs, angles)) <= 10
        assert min(angles) < -5 and max(angles) > 5

    def test_classes_are_balanced(self, data_root, split, number):
        per_class = Counter(annotation['category_id'] for annotation in load(data_root, split)['annotations'])
        assert sorted(per_class) == list(range(1, 11))
        assert max(per_class.values()) - min(per_class.values()) <= 1

    def test_category_is_the_label_of_the_source(self, data_root, split, number):
        from sklearn.datasets import load_digits

        labels = load_digits().target
        for annotation in load(data_root, split)['annotations']:
            assert annotation['category_id'] - 1 == labels[annotation['source']]

    def test_digits_are_brighter_than_what_is_around_them(self, data_root, split, number):
        coco = load(data_root, split)
        for image in coco['images']:
            picture = cv2.imread(str(data_root / split / image['file_name'])).mean(2)
            own = [a for a in coco['annotations'] if a['image_id'] == image['id']]
            masks = np.stack([coco_mask.decode(a['segmentation']) for a in own]).astype(bool)
            background = picture[~masks.any(0)]
            assert background.mean() < 130
            for mask in masks:
                assert picture[mask].mean() > background.mean() + 60

    def test_masks_are_the_visible_extents(self, data_root, split, number):
        coco = load(data_root, split)
        for image in coco['images']:
            expected = np.zeros((160, 160), dtype=np.uint8)
            for annotation in coco['annotations']:
                if annotation['image_id'] == image['id']:
                    expected[coco_mask.decode(annotation['segmentation']) > 0] = annotation['category_id']
            name = Path(image['file_name']).with_suffix('.png')
            mask = cv2.imread(str(data_root / 'masks' / split / name), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(mask, expected)

    def test_overlap_is_there_but_small(self, data_root, split, number):
        coco = load(data_root, split)
        ious = []
        for image in coco['images']:
            boxes = np.array([a['bbox'] for a in coco['annotations'] if a['image_id'] == image['id']], dtype=float)
            iou = coco_mask.iou(boxes, boxes, [0] * len(boxes))
            ious.extend(iou[np.triu_indices(len(boxes), 1)])
        assert 0 < max(ious) <= 0.2


def test_train_and_val_share_no_handwritten_sample(data_root):
    train, val = ({a['source'] for a in load(data_root, split)['annotations']} for split in ('train', 'val'))
    assert train and val and not train & val


def test_the_split_of_samples_covers_all_of_them_once():
    labels = np.arange(1797) % 10
    train, val = module._split_samples(labels, np.random.default_rng(0))
    assert sorted(np.concatenate(train + val)) == list(range(1797))
    assert all((labels[indices] == label).all() for split in (train, val) for label, indices in enumerate(split))
    assert [len(indices) for indices in val] == [36] * 10


def test_the_parts_of_a_photograph_are_disjoint():
    columns = np.arange(640)[None, :, None].repeat(8, 0)
    train, val = (set(module._photo_part(columns, split).flat) for split in ('train', 'val'))
    assert not train & val and len(train | val) == 640


def test_rotation_is_counter_clockwise():
    bar = np.zeros((8, 8), dtype=np.float32)
    bar[:, 3:5] = 1
    top_minus_bottom = []
    for angle in (-10, 0, 10):
        glyph = module._render_glyph(bar, 64, angle)
        top_minus_bottom.append(np.nonzero(glyph.mask[5])[0].mean() - np.nonzero(glyph.mask[-5])[0].mean())
    right, straight, left = top_minus_bottom
    assert straight == pytest.approx(0, abs=1)
    # The ends are about 60 pixels apart: tan(10 degrees) * 60 = 10.6.
    assert right == pytest.approx(10.6, abs=2.5) and left == pytest.approx(-10.6, abs=2.5)


def test_overlap_is_a_share_of_the_smaller_box():
    assert module._overlap((0, 0, 10, 10), (5, 5, 10, 20)) == pytest.approx(0.25)
    assert module._overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_same_seed_same_bytes(data_root, tmp_path):
    again = generate_digits(tmp_path / 'again', NUM_TRAIN, NUM_VAL)
    assert files(again) == files(data_root)
    other = generate_digits(tmp_path / 'other', NUM_TRAIN, NUM_VAL, seed=1)
    assert load(other, 'train')['annotations'] != load(data_root, 'train')['annotations']


def test_other_image_size(tmp_path):
    root = generate_digits(tmp_path / 'digits', 2, 2, image_size=200)
    assert cv2.imread(str(root / 'train' / '000001.jpg')).shape == (200, 200, 3)


class TestRerun:
    def test_complete_set_is_left_alone(self, tmp_path, monkeypatch):
        root = generate_digits(tmp_path / 'digits', 2, 2)
        monkeypatch.setattr(module, '_write_set', lambda *_: pytest.fail('generated again'))
        assert generate_digits(root, 2, 2) == root

    def test_incomplete_set_is_made_again(self, tmp_path):
        root = generate_digits(tmp_path / 'digits', 2, 2)
        before = files(root)
        (root / 'val' / '000002.jpg').unlink()
        assert files(generate_digits(root, 2, 2)) == before

    def test_other_parameters_replace_it(self, tmp_path):
        root = generate_digits(tmp_path / 'digits', 2, 2)
        generate_digits(root, 3, 1)
        assert (len(load(root, 'train')['images']), len(load(root, 'val')['images'])) == (3, 1)
        assert [path.name for path in tmp_path.iterdir()] == ['digits']

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / 'elsewhere').mkdir()
        link = tmp_path / 'digits'
        link.symlink_to(tmp_path / 'elsewhere')
        generate_digits(link, 2, 2)
        assert link.is_symlink() and (tmp_path / 'elsewhere' / 'val' / '000002.jpg').is_file()

    def test_failure_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError('disk full')

        monkeypatch.setattr(module, '_write_image', fail)
        with pytest.raises(OSError, match='disk full'):
            generate_digits(tmp_path / 'digits', 2, 2)
        assert not list(tmp_path.iterdir())


class TestBadInput:
    @pytest.mark.parametrize(
        'argument, value',
        [('num_train', 0), ('num_val', -1), ('num_val', 2.5), ('image_size', 100), ('seed', -1), ('num_train', True)],
    )
    def test_parameter_out_of_range(self, tmp_path, argument, value):
        with pytest.raises(ValueError, match=f'{argument}={value!r}: give an integer of at least'):
            generate_digits(tmp_path / 'digits', **{argument: value})
        assert not list(tmp_path.iterdir())

    def test_folder_with_other_content(self, tmp_path):
        (tmp_path / 'notes.txt').write_text('mine')
        with pytest.raises(UserError, match='holds something that is no generated digits set'):
            generate_digits(tmp_path, 2, 2)
        assert (tmp_path / 'notes.txt').read_text() == 'mine'

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / 'file').touch()
        with pytest.raises(UserError, match=r"out_dir='.*file/digits' cannot be made: File exists"):
            generate_digits(tmp_path / 'file/digits', 1, 1)

    def test_without_scikit_learn(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
        with pytest.raises(UserError, match='pip install scikit-learn'):
            generate_digits(tmp_path / 'digits', 2, 2)


def test_mmdet_reads_it(data_root):
    pytest.importorskip('mmcv')
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        ann_file='annotations/instances_val.json',
        data_root=str(data_root),
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=DIGIT_CLASSES),
        pipeline=[],
    )
    assert len(dataset) == NUM_VAL
    annotations = load(data_root, 'val')['annotations']
    first = dataset.get_data_info(0)
    own = [a for a in annotations if a['image_id'] == first['img_id']]
    assert [instance['bbox_label'] for instance in first['instances']] == [a['category_id'] - 1 for a in own]
    x, y, w, h = own[0]['bbox']
    assert first['instances'][0]['bbox'] == [x, y, x + w, y + h]
    assert Path(first['img_path']).is_file()
