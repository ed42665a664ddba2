"""Max pooling with a norm behind it, with every set of kernels, against torch."""

import pytest
import torch
import torch.nn.functional as F

from mmgroupnet import ops


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('channels', [1, 7, 16, 64, 67])
@pytest.mark.parametrize(
    'window',
    [[3, 3, 2, 2, 1, 1], [2, 2, 2, 2, 0, 0], [3, 2, 1, 3, 1, 0], [5, 5, 4, 4, 2, 2], [1, 1, 1, 1, 0, 0]],
    ids=str,
)
def test_equals_torch(kernel_set, window, channels, threads):
    torch.manual_seed(0)
    x = torch.randn(3, channels, 21, 34)
    expected = F.max_pool2d(x, window[:2], window[2:4], window[4:])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            out = ops.max_pool(given, window, None, None)
            assert torch.equal(out, expected) and out.is_contiguous(memory_format=torch.channels_last)
            scale, shift = torch.randn(channels), torch.randn(channels)
            normed = expected * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
            assert torch.equal(ops.max_pool(given, window, scale, shift), normed)
    finally:
        torch.set_num_threads(before)


def test_padding_is_less_than_any_number(kernel_set):
    x = torch.full((1, 3, 2, 2), -torch.inf)
    assert torch.equal(ops.max_pool(x, [3, 3, 2, 2, 1, 1], None, None), torch.full((1, 3, 1, 1), -torch.inf))


def test_not_a_number_alone_stays(kernel_set):
    x = torch.full((1, 20, 4, 4), torch.nan)
    assert ops.max_pool(x, [3, 3, 2, 2, 1, 1], None, None).isnan().all()


def test_without_images(kernel_set):
    assert ops.max_pool(torch.empty(0, 8, 9, 9), [3, 3, 2, 2, 1, 1], None, None).shape == (0, 8, 5, 5)


def test_shapes_on_meta():
    out = ops.max_pool(torch.empty(2, 8, 9, 12, device='meta'), [3, 3, 2, 2, 1, 1], None, None)
    assert out.shape == (2, 8, 5, 6) and out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('window', [[9, 9, 1, 1, 0, 0], [3, 3, 0, 1, 1, 1], [3, 3, 1, 1, 2, 1], [3, 3, 1, 1, -1, 0]])
def test_windows_that_do_not_fit_are_refused(window):
    with pytest.raises(ValueError, match=r'window=\[.*\] \(size, stride, padding\) of a map of 5x6'):
        ops.max_pool(torch.empty(1, 3, 5, 6), window, None, None)


def test_a_scale_without_a_shift_is_refused():
    with pytest.raises(ValueError, match='scale and shift: give both or neither'):
        ops.max_pool(torch.empty(1, 3, 5, 6), [3, 3, 1, 1, 1, 1], torch.ones(3), None)


def test_a_scale_of_another_size_is_refused():
    with pytest.raises(ValueError, match='scale is'):
        ops.max_pool(torch.empty(1, 3, 5, 6), [3, 3, 1, 1, 1, 1], torch.ones(4), torch.ones(4))
