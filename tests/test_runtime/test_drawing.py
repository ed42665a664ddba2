import numpy as np
import pytest
from mmgroupnet_runtime import Classification, Detections, Segmentation, UserError
from mmgroupnet_runtime.drawing import draw
from PIL import ImageFont

PALETTE = [[255, 0, 0], [0, 0, 255]]
NAMES = ['red', 'blue']


def detections(*scores):
    boxes = np.array([[20, 40, 80, 90], [100, 50, 150, 110]], np.float32)
    return Detections(boxes[: len(scores)], np.arange(len(scores)), np.array(scores, np.float32))


@pytest.fixture
def picture():
    return np.full((120, 200, 3), [10, 20, 30], np.uint8)


def drawn(*arguments, **options):
    return np.asarray(draw(*arguments, **options))


def test_boxes_have_the_colour_of_their_class(picture):
    pixels = drawn(picture, detections(0.9, 0.5), NAMES, PALETTE)
    assert pixels.shape == picture.shape
    assert (pixels[60:91, 20] == PALETTE[0]).all() and (pixels[90, 20:81] == PALETTE[0]).all()
    assert (pixels[70:111, 150] == PALETTE[1]).all()
    # The other pixels are those of the picture, in RGB.
    assert (pixels[95:, :90] == [30, 20, 10]).all()


def test_detections_below_the_score_are_not_drawn(picture):
    pixels = drawn(picture, detections(0.9, 0.29), NAMES, PALETTE)
    np.testing.assert_array_equal(pixels, drawn(picture, detections(0.9), NAMES, PALETTE))
    pixels = drawn(picture, detections(0.9, 0.29), NAMES, PALETTE, score_thr=0.95)
    np.testing.assert_array_equal(pixels, picture[..., ::-1])


def test_labels_stay_inside_the_picture(picture):
    corner = Detections(np.array([[190, 115, 260, 150]], np.float32), np.array([0]), np.array([1], np.float32))
    pixels = drawn(picture, corner, ['a rather long name'], PALETTE)
    label = pixels[110:, 150:]
    assert (label == PALETTE[0]).all(axis=2).mean() > 0.3
    assert (label.min(axis=2) > 150).any()  # The text is white on red.


def test_colours_of_classes_over_the_picture(picture):
    classes = np.zeros((120, 200), np.uint8)
    classes[:, 150:] = 1
    pixels = drawn(picture, Segmentation(classes, None), NAMES, PALETTE)
    assert (pixels[60, :150] == [142, 10, 5]).all()
    assert (pixels[60, 150:] == [15, 10, 132]).all()
    assert (pixels[0, :20] == PALETTE[0]).all()  # The caption of the class with the greatest share.


def test_captions_of_scores(picture):
    pixels = drawn(picture, Classification(np.array([0.1, 0.9], np.float32)), NAMES, PALETTE)
    assert (pixels[1, :20] == PALETTE[1]).all()
    assert (pixels[60:] == [30, 20, 10]).all()


def test_classes_without_names_and_colours(picture):
    pixels = drawn(picture, detections(0.9, 0.5), None, None)
    first, second = pixels[80, 20].astype(int), pixels[100, 150].astype(int)
    assert np.abs(first - second).max() > 100
    assert (drawn(picture, detections(0.9, 0.5), None, PALETTE[:1])[60:90, 20] == PALETTE[0]).all()


def test_no_detections(picture):
    np.testing.assert_array_equal(drawn(picture, detections(), NAMES, PALETTE), picture[..., ::-1])


def test_an_old_pillow(picture, monkeypatch):
    monkeypatch.setattr(ImageFont, 'load_default', lambda: None)
    with pytest.raises(UserError, match='this Pillow is too old to draw: `pip install "pillow>=10.1"`'):
        draw(picture, detections(0.9), NAMES, PALETTE)
