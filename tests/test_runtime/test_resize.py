import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmcv.transforms import CenterCrop, Resize
from mmgroupnet_runtime import UserError
from mmgroupnet_runtime.resize import apply_steps, check_steps, resize_linear
from mmpretrain.datasets.transforms import ResizeEdge

from tests.strategies import seeds


def random_picture(height, width, seed=0, channels=3):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    # Black and white pixels reveal overflows, small differences reveal wrong rounding.
    return np.where(picture > 127, 255, 0).astype(np.uint8) if seed % 3 == 0 else picture


def assert_same_as_cv2(picture, width, height):
    expected = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_linear(picture, width, height), expected.reshape(height, width, -1))


sizes = st.integers(1, 70)


@given(sizes, sizes, sizes, sizes, seeds())
@settings(max_examples=300, deadline=None)
@example(40, 30, 20, 15, 1)  # cv2 uses another algorithm for exactly half the size
@example(1, 1, 9, 7, 1)
@example(33, 21, 1, 1, 1)
def test_pixels_are_those_of_cv2(height, width, new_height, new_width, seed):
    assert_same_as_cv2(random_picture(height, width, seed), new_width, new_height)


@pytest.mark.parametrize(
    ('size', 'new'),
    [
        ((480, 640), (800, 1066)),
        ((1080, 1920), (224, 398)),
        ((97, 1031), (613, 29)),
        ((720, 960), (180, 240)),
        ((375, 500), (600, 800)),
        ((1500, 40), (1499, 41)),
    ],
)
def test_large_pictures_have_the_pixels_of_cv2(size, new):
    for seed in (1, 3):
        assert_same_as_cv2(random_picture(*size, seed), new[1], new[0])


def test_a_slice_of_a_picture_and_other_numbers_of_channels():
    picture = random_picture(50, 60, 1)
    assert_same_as_cv2(np.ascontiguousarray(picture[3:40:2, ::-1]), 31, 44)
    np.testing.assert_array_equal(
        resize_linear(picture[3:40:2, ::-1], 31, 44), resize_linear(picture[3:40:2, ::-1].copy(), 31, 44)
    )
    assert_same_as_cv2(random_picture(20, 30, 1, channels=1), 41, 13)
    assert_same_as_cv2(random_picture(20, 30, 1, channels=4), 41, 13)


def test_the_same_size_is_the_same_picture():
    picture = random_picture(5, 6, 1)
    np.testing.assert_array_equal(resize_linear(picture, 6, 5), picture)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 300), st.integers(16, 300), st.booleans())
@settings(max_examples=150, deadline=None)
@example(427, 640, 800, 1333, True)
def test_resize_is_that_of_mmcv(height, width, scale_width, scale_height, keep_ratio):
    step = dict(type='resize', width=scale_width, height=scale_height, keep_ratio=keep_ratio)
    assert_same_as_transform(Resize((scale_width, scale_height), keep_ratio=keep_ratio), step, height, width)


@given(
    st.integers(8, 400), st.integers(8, 400), st.integers(8, 300), st.sampled_from(['short', 'long', 'width', 'height'])
)
@settings(max_examples=150, deadline=None)
@example(50, 50, 33, 'short')
@example(50, 50, 33, 'long')
def test_resize_edge_is_that_of_mmpretrain(height, width, length, edge):
    step = dict(type='resize_edge', edge=edge, length=length)
    assert_same_as_transform(ResizeEdge(length, edge), step, height, width)


@given(sizes, sizes, sizes, sizes)
@settings(max_examples=150, deadline=None)
@example(11, 14, 3, 4)  # halves, 3.5 rows and 5.5 columns, are rounded to the even neighbour
def test_center_crop_is_that_of_mmcv(height, width, crop_width, crop_height):
    step = dict(type='center_crop', width=crop_width, height=crop_height)
    assert_same_as_transform(CenterCrop((crop_width, crop_height)), step, height, width)


def assert_same_as_transform(transform, step, height, width):
    picture = random_picture(height, width, 1)
    try:
        results = transform(dict(img=picture))
    except cv2.error:  # The resized picture would be empty.
        with pytest.raises(UserError, match=rf'picture of {width} x {height} pixels is too long and narrow'):
            apply_steps(picture, [step])
        return
    np.testing.assert_array_equal(apply_steps(picture, [step]), results['img'])


def test_steps_follow_each_other():
    picture = random_picture(300, 410, 1)
    steps = [dict(type='resize_edge', edge='short', length=256), dict(type='center_crop', width=224, height=224)]
    results = CenterCrop(224)(ResizeEdge(256)(dict(img=picture)))
    np.testing.assert_array_equal(apply_steps(picture, steps), results['img'])


def test_no_step_leaves_the_picture():
    picture = random_picture(3, 4, 1)
    np.testing.assert_array_equal(apply_steps(picture, []), picture)


RESIZE = dict(type='resize', width=8, height=8, keep_ratio=True)


@pytest.mark.parametrize(
    'step',
    [
        dict(type='pad'),
        {**RESIZE, 'backend': 'pillow'},
        dict(type='resize', width=8, height=8),
        {**RESIZE, 'width': 0},
        {**RESIZE, 'height': 8.5},
        dict(type='resize_edge', edge='left', length=8),
        dict(type='resize_edge', edge='long'),
    ],
)
def test_unknown_and_incomplete_steps(step):
    with pytest.raises(ValueError, match='resize step'):
        check_steps([RESIZE, step], crops=True)


def test_crops_are_for_answers_without_coordinates():
    crop = dict(type='center_crop', width=8, height=8)
    check_steps([RESIZE, crop], crops=True)
    with pytest.raises(ValueError, match='resize step .*center_crop'):
        check_steps([RESIZE, crop], crops=False)
