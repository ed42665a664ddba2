"""Comparison of a written file with its model."""

from unittest import mock

import pytest

from mmgroupnet.deploy.onnx.check import Comparison, check, random_picture
from mmgroupnet.deploy.onnx.export import _picture_size
from mmgroupnet.deploy.onnx.graph import Graph


def test_a_file_computes_what_its_model_does(written):
    comparison = written[1].comparison
    assert comparison.problem is None
    assert {name: a for name, (a, b) in comparison.shapes.items() if a == b} == dict(dets=(1, 20, 5), labels=(1, 20))
    assert comparison.differences['labels'] == 0 and comparison.differences['dets'] < 2e-3


def test_a_file_without_the_operators_is_not_compared(written):
    model, _, path = written
    with mock.patch('mmgroupnet_runtime.library_path', side_effect=ValueError('the library is missing')):
        comparison = check(path, Graph(model), (48, 64))
    assert str(comparison) == 'not compared with the model: ValueError: the library is missing'


def test_a_comparison_in_words():
    shapes = dict(dets=((1, 20, 5), (1, 19, 5)), labels=((1, 20), (1, 20)))
    assert str(Comparison(shapes=shapes, differences=dict(labels=0.25))) == (
        'largest difference from the model on a random picture: dets are 1x19x5 in place of 1x20x5, labels (1x20) '
        '2.5e-01'
    )


def test_random_pictures():
    picture = random_picture(35, 50, seed=3)
    assert picture.shape == (1, 35, 50, 3) and picture.dtype == 'uint8'
    assert (picture == random_picture(35, 50, seed=3)).all() and (picture != random_picture(35, 50, seed=4)).any()
    # The difference between neighbouring patches is larger than the noise inside a patch.
    assert abs(picture[0, :16, :16].mean() - picture[0, :16, 16:32].mean()) > picture[0, :16, :16].std((0, 1)).max()


@pytest.mark.parametrize(
    ('steps', 'size'),
    [
        (None, (131, 163)),
        ([], (131, 163)),
        ([dict(type='resize', width=1333, height=800, keep_ratio=True)], (192, 320)),
        ([dict(type='resize', width=64, height=48, keep_ratio=True)], (48, 64)),
        ([dict(type='resize', width=640, height=512, keep_ratio=False)], (512, 640)),
        (
            [dict(type='resize_edge', edge='short', length=256), dict(type='center_crop', width=224, height=192)],
            (192, 224),
        ),
    ],
    ids=str,
)
def test_the_picture_is_of_a_size_that_the_rule_gives(steps, size):
    assert _picture_size(steps) == size
