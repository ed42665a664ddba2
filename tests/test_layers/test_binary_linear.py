import pytest
import torch
from torch.testing import assert_close

from mmgroupnet.layers import BinaryLinear, LayerwiseBinaryLinear
from tests.references import assert_same_gradients, reference_sign, reference_weight


@pytest.mark.parametrize('shape', [(5,), (7, 5), (2, 7, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize('memory_efficient', [False, True])
def test_is_a_product_of_signs(shape, memory_efficient):
    layer = BinaryLinear(5, 3, bias=True, memory_efficient=memory_efficient).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = reference_sign(x) @ reference_weight(layer.weight).flatten(1).t() + layer.bias
    assert_same_gradients(layer(x), expected, [x, layer.weight, layer.bias])


def test_bases_are_averaged():
    layer = LayerwiseBinaryLinear(6, 4, num_bases=3)
    x = torch.randn(2, 5, 6)
    signs = torch.where(x >= 0, 1.0, -1.0)
    parts = [torch.where(w >= 0, 1.0, -1.0) * w.abs().mean() for w in layer.weight.flatten(1).chunk(3)]
    assert_close(layer(x), sum(signs @ part.t() for part in parts) / 3)


def test_a_batch_norm_sees_all_vectors():
    layer = BinaryLinear(4, 2, input_norm=dict(type='BN'))
    x = torch.randn(3, 10, 4) * 2 + 5
    layer.train()(x)
    assert_close(layer.input_norm.running_mean, 0.1 * x.flatten(0, 1).mean(0))


def test_a_group_norm_sees_one_vector():
    layer = BinaryLinear(4, 2, input_norm=dict(type='GN', num_groups=2))
    x = torch.randn(3, 10, 4)
    assert torch.equal(layer(x)[1], layer(x[1]))


def test_no_vectors():
    assert BinaryLinear(4, 2)(torch.zeros(0, 4)).shape == (0, 2)


def test_vectors_of_another_length():
    with pytest.raises(ValueError, match=r'input of shape \(2, 5\): BinaryLinear takes \(\.\.\., 4\)'):
        BinaryLinear(4, 2)(torch.zeros(2, 5))


def test_folded_branches():
    with pytest.raises(ValueError, match='num_bases=2: vectors have no folded branches'):
        BinaryLinear(4, 2, num_bases=2)
