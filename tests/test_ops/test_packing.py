import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgroupnet import ops
from tests.strategies import seeds
from tests.test_ops.oracle import SIGN_VALUES


def words_of(x: Tensor, branches: int) -> Tensor:
    """Signs in words of 64 bits, computed with numpy: (N, H, W, branches, words)."""
    negative = ~(x >= 0).permute(0, 2, 3, 1).unflatten(3, (branches, -1)).numpy()
    channels = negative.shape[-1]
    padded = np.zeros((*negative.shape[:-1], -(-channels // 64) * 64), dtype=bool)
    padded[..., :channels] = negative
    return torch.from_numpy(np.packbits(padded, axis=-1, bitorder='little').view('<i8'))


class TestPackBits:
    def test_least_significant_bit_first(self):
        rows = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 1, 1, 0]], dtype=torch.bool)
        assert torch.equal(ops.pack_bits(rows), torch.tensor([[1, 2], [130, 1]], dtype=torch.uint8))

    @given(seeds(), st.integers(1, 4), st.integers(1, 70))
    def test_unpacks_what_was_packed(self, seed, rows, bits):
        negative = torch.rand(rows, bits, generator=torch.Generator().manual_seed(seed)) < 0.5
        packed = ops.pack_bits(negative)
        assert packed.shape == (rows, -(-bits // 8))
        assert torch.equal(ops.unpack_bits(packed, bits), negative)
        assert not ops.unpack_bits(packed, packed.shape[1] * 8)[:, bits:].any()


class TestPackWeight:
    def test_order_is_height_width_channel(self):
        weight = torch.ones(1, 3, 2, 2)
        weight[0, 1, 0, 0] = -1  # bit 1
        weight[0, 2, 0, 1] = -1  # bit 5
        weight[0, 0, 1, 0] = -1  # bit 6
        weight[0, 2, 1, 1] = -1  # bit 11
        assert ops.pack_weight(weight).tolist() == [[0b01100010, 0b1000]]

    def test_zeros_are_positive_and_not_a_number_is_negative(self):
        weight = torch.tensor([0.0, -0.0, torch.nan, -1e-30]).view(1, 4, 1, 1)
        assert ops.pack_weight(weight).tolist() == [[0b1100]]

    @pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 5, 1, 2), (2, 64, 3, 3), (4, 65, 3, 1)])
    def test_unpacks_what_was_packed(self, shape):
        weight = SIGN_VALUES[torch.randint(len(SIGN_VALUES), shape)]
        unpacked = ops.unpack_weight(ops.pack_weight(weight), shape[1], shape[2:])
        assert torch.equal(unpacked, torch.where(weight >= 0, 1.0, -1.0))


class TestSignPack:
    def test_bits(self, kernel_set):
        x = torch.ones(1, 2 * 65, 1, 2)
        x[0, 0, 0, 1] = -1  # branch 0, channel 0
        x[0, 63, 0, 1] = -1
        x[0, 65 + 64, 0, 1] = -1  # branch 1, channel 64
        expected = [[[[0, 0], [0, 0]], [[1 - 2**63, 0], [0, 1]]]]
        assert ops.sign_pack(x, 2).tolist() == [expected]

    def test_zeros_are_positive_and_not_a_number_is_negative(self, kernel_set):
        # More channels than the widest vector has lanes, so that whole vectors and the remainder get these values.
        values = torch.tensor([0.0, -0.0, torch.nan, -torch.inf, torch.inf, -1e-42, 1e-42, -1.0, 1.0] * 4)
        expected = sum(bit << i for i, bit in enumerate([0, 0, 1, 1, 0, 1, 0, 1, 0] * 4))
        assert ops.sign_pack(values.view(1, -1, 1, 1), 1).tolist() == [[[[[expected]]]]]

    @pytest.mark.parametrize('branches', [1, 3])
    @pytest.mark.parametrize('channels', [1, 3, 16, 63, 64, 65, 130])
    def test_layouts(self, kernel_set, channels, branches):
        x = SIGN_VALUES[torch.randint(len(SIGN_VALUES), (2, branches * channels, 4, 6))]
        expected = words_of(x, branches)
        layouts = {
            'nchw': x,
            'nhwc': x.contiguous(memory_format=torch.channels_last),
            'neither': torch.stack([x, -x], dim=-1)[..., 0],
            'part of a wider map': torch.cat([x, -x], dim=1)[:, : branches * channels],
            'transposed': x.transpose(2, 3).contiguous().transpose(2, 3),
        }
        for name, given_x in layouts.items():
            assert torch.equal(given_x, x), name
            words = ops.sign_pack(given_x, branches)
            assert words.dtype == torch.int64, name
            assert torch.equal(words, expected), name

    @given(
        seeds(),
        st.integers(1, 2),
        st.integers(1, 3),
        st.sampled_from([1, 2, 7, 8, 31, 33, 64, 100, 128, 129]),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        st.booleans(),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_shape(self, kernel_set, seed, batch, branches, channels, size, channels_last):
        x = torch.randn(batch, branches * channels, *size, generator=torch.Generator().manual_seed(seed))
        expected = words_of(x, branches)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(ops.sign_pack(x, branches), expected)


@pytest.mark.parametrize('shape', [(3, 1, 1, 1), (4, 5, 3, 3), (7, 64, 1, 1), (2, 130, 3, 2)], ids=str)
def test_weights_are_packed_alike_by_kernels_and_by_torch(kernel_set, shape):
    weight = SIGN_VALUES[torch.randint(len(SIGN_VALUES), shape)]
    expected = ops.pack_bits(~(weight >= 0).permute(0, 2, 3, 1).flatten(1))
    for each in (weight, weight.contiguous(memory_format=torch.channels_last), weight.double()):
        assert torch.equal(ops.pack_weight(each), expected)
    magnitude = weight.nan_to_num(-1.0)
    unpacked = ops.unpack_weight(ops.pack_weight(magnitude), shape[1], shape[2:])
    assert torch.equal(unpacked, torch.where(magnitude >= 0, 1.0, -1.0))
