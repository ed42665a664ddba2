"""Zeros and negative zeros, such as behind ReLUs and pooling: their sign is +1 in lean and in plain training."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, Chain, ChainUnit, LayerwiseBinaryConv2d, can_run_chain
from mmgroupnet.layers.lean import can_run_conv
from tests.lean_comparison import PlainChain, assert_lean_is_plain, randomise


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def with_zeros(channels: int) -> Tensor:
    """A map with a row of zeros, a row of negative zeros, and a row that alternates between both."""
    x = torch.randn(2, channels, 7, 6)
    x[:, :, 1], x[:, :, 2] = 0.0, -0.0
    x[:, :, 4, ::2], x[:, :, 4, 1::2] = 0.0, -0.0
    return x


def positive_at_zero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


@pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
def test_zeros_of_both_signs(cls):
    conv = cls(3, 4, 3, padding=1, num_bases=2).double()
    x = with_zeros(3 * conv.num_folded).double()
    assert can_run_conv(conv, x)
    assert_lean_is_plain(conv, [x], 1e-9)
    assert_close(conv(x), conv(positive_at_zero(x)), rtol=0, atol=0)


def test_zeros_of_both_signs_in_a_chain_of_single_precision():
    conv = BinaryConv2d(3, 4, 3, padding=1, num_bases=2)
    model = PlainChain(Chain((ChainUnit(conv, randomise(nn.BatchNorm2d(8))),), 2))
    x = with_zeros(6)
    assert can_run_chain(model.chain(), x, model)
    assert_lean_is_plain(model, [x], 1e-5)
    assert_close(model(x), model(positive_at_zero(x)), rtol=0, atol=0)
