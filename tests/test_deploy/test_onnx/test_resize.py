"""The resize rule of a test pipeline."""

import pytest
from mmdet.datasets.transforms import Resize

from mmgroupnet.deploy.onnx import UnknownResize, read_resize

_AROUND = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]


@pytest.mark.parametrize(
    ('transforms', 'steps'),
    [
        ([], []),
        (
            [dict(type='Resize', scale=(1333, 800), keep_ratio=True)],
            [dict(type='resize', width=1333, height=800, keep_ratio=True)],
        ),
        (
            [dict(type='mmdet.Resize', scale=64, backend='cv2', interpolation='bilinear')],
            [dict(type='resize', width=64, height=64, keep_ratio=False)],
        ),
        (
            [dict(type='ResizeEdge', scale=256, edge='long'), dict(type='CenterCrop', crop_size=(224, 192))],
            [dict(type='resize_edge', edge='long', length=256), dict(type='center_crop', width=224, height=192)],
        ),
        ([dict(type='ResizeEdge', scale=256)], [dict(type='resize_edge', edge='short', length=256)]),
        ([dict(type=Resize, scale=64)], [dict(type='resize', width=64, height=64, keep_ratio=False)]),
        ([dict(type='RandomFlip', prob=0)], []),
    ],
    ids=str,
)
def test_steps(transforms, steps):
    assert read_resize([_AROUND[0], *transforms, *_AROUND[1:]], crops=True) == steps


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='Resize', scale_factor=0.5),
        dict(type='Resize', scale=(64, 48), backend='pillow'),
        dict(type='ResizeEdge', scale=256, interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=224, auto_pad=True),
        dict(type='FixScaleResize', scale=(64, 48), keep_ratio=True),
        dict(type='Pad', size_divisor=32),
        dict(type='LoadImageFromFile', color_type='grayscale'),
        dict(type='LoadImageFromFile', to_float32=True),
        dict(type='RandomFlip', prob=0.5),
    ],
    ids=str,
)
def test_what_no_step_says_is_named(transform):
    with pytest.raises(UnknownResize) as caught:
        read_resize([*_AROUND, transform], crops=True)
    assert str(caught.value) == (
        f'the test pipeline has {transform}: the file can hold Resize(scale, keep_ratio), ResizeEdge and, only '
        'for classifiers and maps, CenterCrop, bilinear by cv2, of pictures loaded in colour as uint8'
    )


def test_crops_that_an_answer_in_pixels_does_not_allow():
    with pytest.raises(UnknownResize, match="the test pipeline has {'type': 'CenterCrop', 'crop_size': 32}: "):
        read_resize([*_AROUND, dict(type='CenterCrop', crop_size=32)], crops=False)
    assert read_resize([*_AROUND, dict(type='ResizeEdge', scale=32)], crops=False) == [
        dict(type='resize_edge', edge='short', length=32)
    ]
