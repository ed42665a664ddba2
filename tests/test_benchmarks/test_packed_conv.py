"""The benchmark of single convolutions, run on small ones."""

import json

import pytest
import torch
from torch.testing import assert_close

from benchmarks import packed_conv
from benchmarks.packed_conv import FloatConvs, PackedConvs, Shape
from mmgroupnet.ops import Connection, kernels, run_block, unpack_weight
from tests.references import reference_conv

pytestmark = pytest.mark.skipif(kernels.library() is None, reason='the packed kernels were not compiled')

SMALL = Shape(64, 5, 4)


def test_a_shape_counts_its_products():
    assert Shape(64, 56, 56).macs == 115_605_504
    assert str(Shape(64, 56, 56)) == '64x56x56'


@pytest.mark.parametrize('num_bases', [1, 3])
def test_what_is_timed_is_the_chain_of_binary_convs(num_bases):
    chain = PackedConvs(SMALL, num_bases, length=3)
    expected = chain.x
    for bits, _, _, scale, shift, _, _ in chain.parameters:
        weight = unpack_weight(bits, SMALL.channels, (3, 3))
        branches = [
            reference_conv(x, w, padding=(1, 1), quantize=lambda weight: weight)
            for x, w in zip(expected.chunk(num_bases, 1), weight.chunk(num_bases), strict=True)
        ]
        sums = torch.cat(branches, 1).relu()
        expected = scale[:, None, None] * sums + shift[:, None, None] + expected
    assert_close(chain(), expected)


def test_it_is_what_the_op_computes():
    chain = PackedConvs(SMALL, 2, length=4)
    tensors = [tensor for unit in chain.parameters for tensor in unit]
    parameters = [tensor for tensor in tensors if tensor is not None]
    places = [place for place, tensor in enumerate(tensors) if tensor is not None]
    geometry = chain.geometry.encode() * 4
    expected = run_block(chain.x, Connection.SEPARATE, 2, None, None, geometry, parameters, places, False, None)
    assert torch.equal(chain(), expected)


def test_the_units_of_a_chain_have_weights_of_their_own():
    chain = PackedConvs(SMALL, 2, length=3)
    packed = [unit[0] for unit in chain.parameters]
    assert not torch.equal(packed[0], packed[1])
    assert len({unit.weights for unit in chain.units}) == 3


def test_the_float_chain_convolves_in_channels_last():
    chain = FloatConvs(SMALL, 2)
    out = chain()
    assert out.shape == (1, 64, 5, 4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert 0.1 < out.std() < 10  # neither denormal nor infinite values, which would change the speed


def test_a_packed_measurement_is_the_difference_of_two_chains(monkeypatch):
    monkeypatch.setattr(packed_conv, 'stopwatch', lambda chain: lambda: 7.0 + 0.5 * len(chain.parameters))
    assert packed_conv.packed_stopwatch(SMALL, 1)() == 0.5
    monkeypatch.setattr(packed_conv, 'stopwatch', lambda chain: lambda: 0.25 * len(chain.convs))
    assert packed_conv.float_stopwatch(SMALL)() == 0.25


def test_rates_follow_from_times(monkeypatch):
    monkeypatch.setattr(packed_conv, 'ceiling', lambda threads: threads * 1e9)
    monkeypatch.setattr(packed_conv, 'packed_stopwatch', lambda shape, num_bases: lambda: num_bases * 1e-3)
    monkeypatch.setattr(packed_conv, 'float_stopwatch', lambda shape: lambda: 6e-3)
    results = packed_conv.measure([SMALL], [1, 2], rounds=3, threads=1)
    first, second = results['convs']
    assert (first['num_bases'], second['num_bases']) == (1, 2)
    rate = 64 * 64 * 9 * 5 * 4 / 1e-3 / 1e9
    for conv in (first, second):
        assert conv['rate'].median == pytest.approx(rate)
        assert conv['share_of_ceiling'] == pytest.approx(rate)
    assert (first['ms'].median, second['ms'].median) == pytest.approx((1, 2))
    assert (first['speedup'].median, second['speedup'].median) == pytest.approx((6, 3))


def test_a_run_prints_a_table_and_writes_json_and_a_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(packed_conv, 'SHAPES', [SMALL])
    monkeypatch.setattr(packed_conv, 'CEILING_SECONDS', 0.001)
    threads = torch.get_num_threads()
    try:
        packed_conv.main(['--rounds', '2', '--out', str(tmp_path / 'conv.json')])
    finally:
        torch.set_num_threads(threads)
    results = json.loads((tmp_path / 'conv.json').read_text())
    assert results['machine']['threads'] == 1
    assert results['ceiling'][0] > 0
    assert [(conv['shape'], conv['num_bases'], conv['float_ms'][3]) for conv in results['convs']] == [
        ([64, 5, 4], 1, 2),
        ([64, 5, 4], 4, 2),
    ]
    assert (tmp_path / 'conv.png').stat().st_size > 1000
    table = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('| 64x5x4 |') for line in table) == 2
