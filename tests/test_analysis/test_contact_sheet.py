import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmgroupnet.analysis.contact_sheet import Tile, draw_contact_sheet, load_tiles, match_detections

CLASSES = ('cat', 'dog')


def make_tile(true=(), detected=()) -> Tile:
    """A black tile of 40x60 pixels; objects as (box, label), detections as (box, label, score)."""
    return Tile(
        image=np.zeros((40, 60, 3), dtype=np.uint8),
        true_boxes=np.array([box for box, _ in true], dtype=float).reshape(-1, 4),
        true_labels=np.array([label for _, label in true], dtype=int),
        boxes=np.array([box for box, _, _ in detected], dtype=float).reshape(-1, 4),
        labels=np.array([label for _, label, _ in detected], dtype=int),
        scores=np.array([score for _, _, score in detected], dtype=float),
    )


class TestMatching:
    def test_class_and_place_decide(self):
        tile = make_tile(
            true=[((0, 0, 10, 10), 0), ((20, 0, 30, 10), 1)],
            detected=[((0, 0, 10, 9), 0, 0.9), ((20, 0, 30, 10), 0, 0.8), ((24, 4, 34, 14), 1, 0.7)],
        )
        hits, found = match_detections(tile)
        assert hits.tolist() == [True, False, False]  # wrong class; IoU 36 / 164
        assert found.tolist() == [True, False]

    def test_the_better_score_takes_the_object(self):
        detected = [((0, 0, 10, 10), 0, 0.4), ((0, 0, 10, 8), 0, 0.6)]
        hits, found = match_detections(make_tile(true=[((0, 0, 10, 10), 0)], detected=detected))
        assert hits.tolist() == [False, True]
        assert found.tolist() == [True]

    def test_the_object_that_overlaps_most_is_taken(self):
        true = [((0, 0, 10, 10), 0), ((0, 0, 10, 8), 0)]
        _, found = match_detections(make_tile(true, detected=[((0, 0, 10, 8), 0, 0.5)]))
        assert found.tolist() == [False, True]

    @pytest.mark.parametrize('iou, hit', [(0.5, True), (0.49, False)])
    def test_threshold(self, iou, hit):
        hits, _ = match_detections(make_tile([((0, 0, 10, 10), 0)], [((0, 0, 10, 10 * iou), 0, 0.5)]))
        assert hits.tolist() == [hit]

    def test_nothing_there(self):
        hits, found = match_detections(make_tile())
        assert hits.shape == found.shape == (0,)
        hits, _ = match_detections(make_tile(detected=[((0, 0, 5, 5), 0, 0.5)]))
        assert hits.tolist() == [False]


class TestSheet:
    def test_size_follows_from_the_tiles(self):
        sheet = draw_contact_sheet([make_tile()] * 3, CLASSES, 'title', columns=2, picture_size=120)
        # A picture is 120x80, a tile 246x80; two columns, two rows, margins of 24 and a header of 96.
        assert sheet.size == (2 * (246 + 24) + 24, 96 + 2 * (80 + 24))

    @pytest.mark.parametrize(
        'label, colour, absent',
        [(0, (64, 200, 96), (240, 80, 70)), (1, (240, 80, 70), (64, 200, 96))],
        ids=['hit is green', 'wrong class is red'],
    )
    def test_colours_tell_right_from_wrong(self, label, colour, absent):
        tile = make_tile([((10, 10, 50, 30), 0)], [((10, 10, 50, 30), label, 0.9)])
        sheet = np.array(draw_contact_sheet([tile], CLASSES, 'title', picture_size=120))
        left, right = sheet[96:176, 24:144], sheet[96:176, 150:270]
        assert (left == (255, 255, 255)).all(-1).any()
        assert (right == colour).all(-1).any() and not (right == absent).all(-1).any()

    def test_boxes_beyond_the_image_are_drawn_inside(self):
        tile = make_tile([((0, 0, 60, 40), 0)], [((-5, -5, 70, 50), 1, 0.9)])
        sheet = np.array(draw_contact_sheet([tile], CLASSES, 'title', picture_size=120))
        is_red = (sheet[96:] == (240, 80, 70)).all(-1)
        picture = is_red[:80, 150:270]
        assert picture[0].all() and picture[:, -1].all()  # its label covers part of the other sides
        assert is_red.sum() == picture.sum()

    def test_no_tiles(self):
        with pytest.raises(ValueError, match='tiles is empty'):
            draw_contact_sheet([], CLASSES, 'title')


@pytest.fixture
def coco_set(tmp_path):
    images = [dict(id=i, file_name=f'{i}.png', width=8, height=6) for i in (3, 5, 9)]
    annotations = [dict(id=i, image_id=image_id, category_id=7, bbox=[1, 2, 3, 4]) for i, image_id in enumerate((3, 9))]
    categories = [dict(id=7, name='dog'), dict(id=8, name='cat')]
    (tmp_path / 'ann.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    for image in images:
        Image.new('RGB', (8, 6), (image['id'], 0, 0)).save(tmp_path / image['file_name'])

    def write_predictions(image_ids):
        found = dict(
            bboxes=torch.tensor([[0.0, 0, 4, 4], [1, 2, 4, 6]]),
            labels=torch.tensor([0, 1]),
            scores=torch.tensor([0.1, 0.9]),
        )
        results = [dict(img_id=image_id, pred_instances=found) for image_id in image_ids]
        (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(results))
        return tmp_path / 'ann.json', tmp_path, tmp_path / 'predictions.pkl', CLASSES

    return write_predictions


class TestLoading:
    def test_values(self, coco_set):
        tiles = load_tiles(*coco_set([9, 5, 3]))
        assert [tile.image[0, 0, 0] for tile in tiles] == [3, 5, 9]
        assert tiles[0].true_boxes.tolist() == [[1, 2, 4, 6]]
        assert tiles[0].true_labels.tolist() == [1]  # the label of 'dog' follows from its name, not from its id
        assert tiles[1].true_boxes.shape == (0, 4)
        assert tiles[0].boxes.tolist() == [[1, 2, 4, 6]]  # the score of the other box is below 0.3
        assert tiles[0].scores.tolist() == [pytest.approx(0.9)]

    def test_selection_is_evenly_spaced(self, coco_set):
        tiles = load_tiles(*coco_set([3, 5, 9]), num_tiles=2)
        assert [tile.image[0, 0, 0] for tile in tiles] == [3, 9]

    def test_missing_result(self, coco_set):
        with pytest.raises(ValueError, match='has no result for image id 9'):
            load_tiles(*coco_set([3, 5]))
