"""Packed stems: the same layers in channels_last, with pooling and norm in one pass if possible."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from mmgroupnet import ops
from mmgroupnet.layers.packed import Packing, simulated
from mmgroupnet.models.backbones.stem import Stem


def build(*layers: nn.Module) -> Stem:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(13)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        nn.init.normal_(value)  # also negative weights: with these, norm and maximum cannot be exchanged
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return Stem(nn.Conv2d(3, 13, 7, stride=2, padding=3, bias=False), *layers, norm).eval()


def picture() -> Tensor:
    return torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    'layers, is_one_pass',
    [
        ([nn.MaxPool2d(3, stride=2, padding=1)], True),
        ([nn.MaxPool2d((2, 3), stride=(1, 2), padding=(0, 1))], True),
        ([], False),
        ([nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)], False),
        ([nn.MaxPool2d(3, stride=2, dilation=2)], False),
        ([nn.AvgPool2d(3, stride=2)], False),
    ],
    ids=str,
)
def test_the_twin_computes_the_same(layers, is_one_pass, monkeypatch):
    stem, x = build(*layers), picture()
    twin = stem.packed_twin(Packing()).eval()
    assert list(twin.state_dict()) == list(stem.state_dict())
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert stem[0].weight.is_contiguous()  # the original stem is not changed
    max_pool = Mock(wraps=ops.max_pool)
    monkeypatch.setattr(ops, 'max_pool', max_pool)
    with torch.no_grad():
        out = twin(x)
        with simulated():
            expected = stem(x)
    assert max_pool.called == is_one_pass
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_norm_in_training_takes_its_statistics():
    twin = build(nn.MaxPool2d(3, stride=2, padding=1)).packed_twin(Packing()).train()
    before = twin[2].running_mean.clone()
    with torch.no_grad():
        out = twin(picture())
    assert not torch.equal(twin[2].running_mean, before)
    torch.testing.assert_close(out.mean((0, 2, 3)), twin[2].bias.detach(), rtol=1e-4, atol=1e-4)


def test_a_part_is_a_stem():
    assert [type(layer) for layer in build(nn.MaxPool2d(2))[:2]] == [nn.Conv2d, nn.MaxPool2d]
