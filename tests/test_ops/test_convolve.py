"""The integer sums of packed convolutions, for every set of kernels, against torch's convolution of -1 and +1."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgroupnet import ops
from mmgroupnet.ops import UnitGeometry, kernels
from tests.strategies import seeds
from tests.test_ops import oracle
from tests.test_ops.oracle import Unit, geometry, random_signs, random_unit

CHANNELS = [1, 3, 16, 63, 64, 65, 130]
OUT_CHANNELS = [1, 16, 32, 33, 64, 65, 130]


def assert_exact(unit: Unit, x: Tensor) -> None:
    """The op gives the integers of the oracle, with both memory formats of its input and with one and two threads."""
    torch.set_num_threads(1)
    expected = oracle.convolve(unit, x)
    bits = ops.pack_weight(unit.weight)
    for threads, memory_format in ((1, torch.contiguous_format), (2, torch.channels_last)):
        # Only the kernels are tested with several threads; in torch, threads would only cost time.
        torch.set_num_threads(threads if kernels.library() else 1)
        out = ops.convolve(x.contiguous(memory_format=memory_format), bits, unit.numbers)
        assert out.dtype == torch.int32
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, expected), f'{threads} threads, {memory_format}'


@pytest.mark.parametrize('in_channels', CHANNELS)
def test_channels(kernel_set, in_channels):
    for out_channels in OUT_CHANNELS:
        unit = random_unit(geometry(in_channels=in_channels, out_channels=out_channels, padding_value=0))
        assert_exact(unit, random_signs(2, 2 * in_channels, 3, 5))


@pytest.mark.parametrize('padding_value', [1, -1, 0])
@pytest.mark.parametrize(
    'overrides',
    [
        dict(kernel_size=(1, 1), padding=(0, 0)),
        dict(kernel_size=(1, 1), padding=(1, 2), stride=(2, 2)),
        dict(kernel_size=(1, 3), padding=(0, 1)),
        dict(kernel_size=(5, 2), padding=(2, 0), stride=(1, 2)),
        dict(kernel_size=(2, 2), padding=(2, 2), stride=(3, 1)),
        dict(stride=(2, 2)),
        dict(stride=(2, 3), padding=(0, 2)),
        dict(padding=None, dilations=(1, 2, 5)),
        dict(padding=None, dilations=(3, 1, 2), kernel_size=(3, 1), stride=(2, 2)),
        dict(padding=(3, 1), dilations=2),
        dict(groups=3, padding=None, dilations=(2, 1, 1)),
        dict(groups=33),
        dict(shares_weights=True, dilations=2, padding=None),
    ],
    ids=str,
)
def test_geometries(kernel_set, overrides, padding_value):
    numbers = geometry(num_bases=3, in_channels=66, out_channels=33, padding_value=padding_value, **overrides)
    for input_branches in (1, 3):
        assert_exact(random_unit(numbers), random_signs(2, input_branches * 66, 7, 6))


@pytest.mark.parametrize('padding_value', [1, -1, 0])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_small_maps(kernel_set, size, padding_value):
    numbers = geometry(in_channels=20, out_channels=40, padding=None, dilations=(1, 3), padding_value=padding_value)
    assert_exact(random_unit(numbers), random_signs(3, 40, *size))


# 8000 * 9 = 72,000 products, so the sums do not fit 16 bits. Four output pixels fill a tile of every set of kernels.
@pytest.mark.parametrize(('x', 'weight'), [(-1, 1), (1, -1), (1, 1), (None, None)], ids=str)
def test_sums_beyond_16_bits(kernel_set, x, weight):
    unit = random_unit(geometry(num_bases=1, in_channels=8000, out_channels=33, padding=(0, 0)))
    if weight is not None:
        unit.weight.fill_(weight)
    values = random_signs(1, 8000, 4, 4) if x is None else torch.full((1, 8000, 4, 4), float(x))
    assert_exact(unit, values)
    if x is not None:
        out = ops.convolve(values, ops.pack_weight(unit.weight), unit.numbers)
        assert torch.equal(out, torch.full_like(out, 72000 * x * weight))


# AVX2 counts different signs in bytes for up to 63 steps of 4 channels. Here all signs differ, and the numbers of
# channels are around this limit.
@pytest.mark.parametrize('in_channels', [248, 252, 253, 256, 500, 504, 505, 511, 513])
def test_sums_at_the_edge_of_a_byte(kernel_set, in_channels):
    unit = random_unit(geometry(num_bases=1, in_channels=in_channels, kernel_size=(1, 1), padding=(0, 0)))
    unit.weight.fill_(1)
    x = torch.full((1, in_channels, 2, 2), -1.0)
    x[:, :, 1] = random_signs(in_channels, 2)
    assert_exact(unit, x)


def test_not_a_number_is_negative(kernel_set):
    unit = random_unit(geometry(num_bases=1))
    unit.weight[torch.rand_like(unit.weight) < 0.2] = torch.nan
    x = random_signs(1, 16, 5, 5)
    x[torch.rand_like(x) < 0.2] = torch.nan
    assert_exact(unit, x)


def test_large_map_in_many_jobs(kernel_set):
    unit = random_unit(geometry(in_channels=40, out_channels=150, stride=(2, 1), padding_value=0))
    assert_exact(unit, random_signs(2, 80, 45, 70))


@st.composite
def geometries(draw: st.DrawFn) -> UnitGeometry:
    num_bases = draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    shares_weights = draw(st.booleans())
    odd, any_size = st.sampled_from([1, 3, 5]), st.integers(1, 4)
    if draw(st.booleans()):
        padding, sizes = None, st.tuples(odd, odd)
        dilations = draw(st.lists(st.integers(1, 3), min_size=num_bases, max_size=num_bases))
        if shares_weights:
            dilations = dilations[:1] * num_bases
    else:
        padding, sizes = draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), st.tuples(any_size, any_size)
        dilations = [draw(st.integers(1, 2))] * num_bases
    return geometry(
        num_bases=num_bases,
        in_channels=groups * draw(st.sampled_from([1, 3, 4, 16, 31, 33, 63, 64, 65, 97])),
        out_channels=groups * draw(st.sampled_from([1, 2, 16, 31, 32, 33, 63, 64, 65, 97])),
        groups=groups,
        kernel_size=draw(sizes),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        padding_value=draw(st.sampled_from([1, -1, 0])),
        dilations=tuple(dilations),
        shares_weights=shares_weights,
    )


@given(geometries(), st.integers(1, 2), st.tuples(st.integers(0, 6), st.integers(0, 6)), st.booleans(), seeds())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_geometry(kernel_set, numbers, batch, more, one_map, seed):
    """The maps are by ``more`` larger than the smallest ones that the kernel fits on."""
    torch.manual_seed(seed)
    rate, (pad_height, pad_width) = numbers.dilations[0], numbers.pad_of(0)
    height = max(1, rate * (numbers.kernel_size[0] - 1) + 1 - 2 * pad_height) + more[0]
    width = max(1, rate * (numbers.kernel_size[1] - 1) + 1 - 2 * pad_width) + more[1]
    branches = 1 if one_map else numbers.num_bases
    assert_exact(random_unit(numbers), random_signs(batch, branches * numbers.in_channels, height, width))
