import copy
import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmengine.registry import DefaultScope
from torch import nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d
from mmgroupnet.quantizers import ChannelScaleWeight, ClippedIdentitySign
from tests.references import assert_same_gradients, reference_conv, reference_weight, same_padding, with_gradient_of
from tests.strategies import seeds


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def branch_loop(conv: BinaryConv2d, x: torch.Tensor, stride=1, padding=(0, 0), dilation=1, **options) -> torch.Tensor:
    """The folded conv as a loop over K separate ones."""
    rates = dilation if isinstance(dilation, (list, tuple)) else [dilation] * conv.num_bases
    inputs = x.chunk(conv.num_bases, dim=1)
    weights = conv.weight.chunk(conv.num_bases)
    outs = []
    for branch, weight, rate in zip(inputs, weights, rates, strict=True):
        pads = same_padding(weight.shape[2:], rate) if padding == 'same' else padding
        outs.append(reference_conv(branch, weight, stride, pads, rate, **options))
    out = torch.cat(outs, dim=1)
    return out if conv.bias is None else out + conv.bias.view(1, -1, 1, 1)


def layerwise_sum(conv: LayerwiseBinaryConv2d, x: torch.Tensor, stride=1, padding=(0, 0), dilation=1, **options):
    """The layer-wise conv as the explicit sum of K convs with the same input."""
    scales = getattr(conv.merge, 'scales', torch.full((conv.num_bases,), 1 / conv.num_bases, dtype=x.dtype))
    pads = same_padding(conv.weight.shape[2:], dilation) if padding == 'same' else padding
    weights = conv.weight.chunk(conv.num_bases)
    out = sum(
        scale * reference_conv(x, weight, stride, pads, dilation, **options)
        for scale, weight in zip(scales, weights, strict=True)
    )
    return out if conv.bias is None else out + conv.bias.view(1, -1, 1, 1)


def double(conv: BinaryConv2d) -> BinaryConv2d:
    """The conv in float64; its bias, if any, gets random values."""
    conv = conv.double()
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    return conv


def double_input(channels: int, height: int = 7, width: int = 9) -> torch.Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)


def check_folded(x_size: tuple[int, int], layer: dict, pads=None, **reference) -> None:
    """Compares values and gradients of ``BinaryConv2d(**layer)`` with those of the loop."""
    conv = double(BinaryConv2d(**layer))
    x = double_input(conv.num_bases * conv.in_channels, *x_size)
    options = {key: layer[key] for key in ('stride', 'dilation', 'groups', 'padding_value') if key in layer}
    expected = branch_loop(conv, x, padding=pads or (0, 0), **options, **reference)
    assert_same_gradients(conv(x), expected, [x, *conv.parameters()])


@st.composite
def conv_options(draw, per_branch_dilation: bool) -> tuple[dict, tuple[int, int] | str, tuple[int, int]]:
    """Arguments of a conv, the padding of its reference and the size of its input."""
    num_bases, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    layer = dict(
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        groups=groups,
        num_bases=num_bases,
        bias=draw(st.booleans()),
        padding_value=draw(st.sampled_from([1, 0, -1])),
        stride=draw(st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))),
    )
    same = draw(st.booleans())
    sides = st.sampled_from([1, 3] if same else [1, 2, 3])
    layer['kernel_size'] = draw(sides | st.tuples(sides, sides))
    if same:
        layer['padding'] = pads = 'same'
        rate = st.integers(1, 3)
        per_branch = per_branch_dilation and draw(st.booleans())
        layer['dilation'] = draw(st.lists(rate, min_size=num_bases, max_size=num_bases) if per_branch else rate)
    else:
        layer['padding'] = draw(st.integers(0, 2) | st.tuples(st.integers(0, 2), st.integers(0, 2)))
        layer['dilation'] = draw(st.integers(1, 2))
        pads = (layer['padding'],) * 2 if isinstance(layer['padding'], int) else layer['padding']
    size = draw(st.tuples(st.integers(5, 8), st.integers(5, 8)))
    return layer, pads, size


class TestBinaryConv2d:
    def test_by_hand(self):
        conv = BinaryConv2d(1, 1, 3, padding=1)
        weight = torch.tensor([[1.0, -2, 3], [-4, 0, 4], [3, -2, -1]])  # mean magnitude 20 / 9
        conv.weight.data.copy_(weight)
        out = conv(torch.tensor([[[[0.5, -0.5]]]]))
        # The signs in the left window are 1 1 1 / 1 1 -1 / 1 1 1, in the right one 1 1 1 / 1 -1 1 / 1 1 1. Those of the
        # kernel are + - + / - + + / + - -.
        assert_close(out, torch.tensor([[[[-1.0, -1.0]]]]) * 20 / 9)

    @pytest.mark.parametrize('num_bases', [1, 2, 5])
    def test_branches_read_their_own_channels(self, num_bases):
        check_folded((7, 9), dict(in_channels=3, out_channels=2, kernel_size=3, num_bases=num_bases))

    @pytest.mark.parametrize('stride', [1, 2, 3, (1, 2), (2, 1)])
    def test_stride(self, stride):
        check_folded((7, 9), dict(in_channels=2, out_channels=3, kernel_size=3, num_bases=2, stride=stride))

    @pytest.mark.parametrize('padding, pads', [(0, (0, 0)), (2, (2, 2)), ((0, 2), (0, 2)), ((2, 1), (2, 1))])
    @pytest.mark.parametrize('padding_value', [1, 0, -1])
    def test_padding(self, padding, pads, padding_value):
        layer = dict(in_channels=2, out_channels=3, kernel_size=3, padding=padding, padding_value=padding_value)
        check_folded((7, 9), dict(layer, num_bases=2), pads)

    def test_padding_is_plus_one_by_default(self):
        check_folded((7, 9), dict(in_channels=2, out_channels=3, kernel_size=3, padding=1), (1, 1), padding_value=1)

    @pytest.mark.parametrize('kernel_size', [1, 3, 5, (1, 3), (5, 3)])
    @pytest.mark.parametrize('dilation', [1, 2, (1, 3)])
    def test_same_padding_keeps_the_size(self, kernel_size, dilation):
        layer = dict(in_channels=2, out_channels=3, kernel_size=kernel_size, padding='same', dilation=dilation)
        check_folded((7, 9), dict(layer, num_bases=2), 'same')
        assert BinaryConv2d(**layer, num_bases=2)(torch.randn(1, 4, 6, 7)).shape == (1, 6, 6, 7)

    @pytest.mark.parametrize('padding_value', [1, 0, -1])
    def test_one_dilation_per_branch(self, padding_value):
        layer = dict(in_channels=2, out_channels=3, kernel_size=3, padding='same', padding_value=padding_value)
        check_folded((9, 8), dict(layer, num_bases=3, dilation=[1, 2, 4]), 'same')

    @pytest.mark.parametrize('dilation', [2, (2, 2)])
    def test_dilation_with_other_padding(self, dilation):
        layer = dict(in_channels=2, out_channels=3, kernel_size=3, padding=1, num_bases=2, dilation=dilation)
        check_folded((9, 8), layer, (1, 1))

    def test_one_dilation_per_branch_of_a_1x1_conv(self):
        layer = dict(in_channels=2, out_channels=3, kernel_size=1, num_bases=2, dilation=(1, 2), padding=1)
        check_folded((4, 5), layer, (1, 1))

    def test_dilation_is_kept_as_it_was_given(self):
        assert BinaryConv2d(2, 2, 3, dilation=2, num_bases=2).dilation == 2
        assert BinaryConv2d(2, 2, 3, padding='same', dilation=[1, 3], num_bases=2).dilation == (1, 3)

    @pytest.mark.parametrize('groups', [1, 2, 4])
    @pytest.mark.parametrize('num_bases', [1, 3])
    def test_groups_inside_branches(self, groups, num_bases):
        layer = dict(in_channels=4, out_channels=8, kernel_size=3, groups=groups, num_bases=num_bases)
        check_folded((5, 6), layer)

    @pytest.mark.parametrize('num_bases', [1, 3])
    def test_bias(self, num_bases):
        check_folded((5, 6), dict(in_channels=2, out_channels=3, kernel_size=3, bias=True, num_bases=num_bases))

    @pytest.mark.parametrize('kernel_size', [(1, 3), (3, 2), (4, 1)])
    def test_non_square(self, kernel_size):
        layer = dict(in_channels=2, out_channels=3, kernel_size=kernel_size, num_bases=2, stride=(2, 1), padding=(1, 0))
        check_folded((5, 11), layer, (1, 0))

    @settings(deadline=None, max_examples=60)
    @given(conv_options(per_branch_dilation=True), seeds())
    def test_grid(self, drawn, seed):
        layer, pads, size = drawn
        torch.manual_seed(seed)
        check_folded(size, layer, pads)

    def test_ties_and_channels_last(self):
        conv = double(BinaryConv2d(3, 2, 3, padding=1, num_bases=2))
        x = torch.randint(-1, 2, (2, 6, 5, 4)).double().to(memory_format=torch.channels_last).requires_grad_()
        assert_same_gradients(conv(x), branch_loop(conv, x, padding=(1, 1)), [x, *conv.parameters()])


class TestQuantizersOfTheLayer:
    def test_clipped_identity(self):
        def sign(x):
            return with_gradient_of(torch.where(x < 0, -1.0, 1.0).double(), x.clamp(-1, 1))

        layer = dict(in_channels=2, out_channels=3, kernel_size=3, num_bases=2)
        check_folded((5, 6), dict(layer, activation=dict(type='mmgroupnet.ClippedIdentitySign')), sign=sign)

    def test_real_valued(self):
        layer = dict(in_channels=2, out_channels=3, kernel_size=3, num_bases=2, padding=1)
        quantizers = dict(activation=dict(type='mmgroupnet.Tanh'), weight=dict(type='mmgroupnet.RealWeight'))
        check_folded((5, 6), dict(layer, **quantizers), (1, 1), sign=torch.tanh, quantize=lambda weight: weight)

    def test_a_shift_per_channel_of_every_branch(self):
        conv = double(BinaryConv2d(2, 3, 3, num_bases=3, activation=dict(type='mmgroupnet.ShiftedSign')))
        assert conv.activation.shift.shape == (6,)
        nn.init.normal_(conv.activation.shift)
        x = double_input(6)
        expected = branch_loop(conv, x + conv.activation.shift.view(1, 6, 1, 1))
        assert_same_gradients(conv(x), expected, [x, *conv.parameters()])

    def test_a_scale_per_channel(self):
        def quantize(weight):
            return torch.stack([reference_weight(kernel) for kernel in weight])

        layer = dict(in_channels=4, out_channels=6, kernel_size=3, num_bases=2, groups=2)
        check_folded((5, 6), dict(layer, weight=dict(type='mmgroupnet.ChannelScaleWeight')), quantize=quantize)

    def test_no_scale(self):
        conv = BinaryConv2d(1, 2, 3, num_bases=2, weight=dict(type='mmgroupnet.UnscaledWeight'))
        out = conv(torch.randn(2, 2, 7, 7))
        assert torch.equal(out, out.round()) and out.abs().max() <= 9

    @pytest.mark.parametrize('memory_efficient', [True, False])
    def test_a_quantizer_whose_forward_was_replaced(self, memory_efficient):
        conv = BinaryConv2d(2, 3, 3, memory_efficient=memory_efficient)
        conv.weight_quantizer.forward = lambda weight, num_bases: 0 * weight
        assert conv(torch.randn(1, 2, 5, 5)).abs().max() == 0

    def test_input_norm_stands_in_front_of_the_sign(self):
        conv = double(BinaryConv2d(2, 3, 3, padding=1, num_bases=2, input_norm=dict(type='BN')))
        nn.init.uniform_(conv.input_norm.weight)
        nn.init.normal_(conv.input_norm.bias)
        x = double_input(4)
        with torch.no_grad():
            x.relu_()  # without the norm, its signs would all be +1
        mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        normed = (x - mean) / (var + 1e-5).sqrt()
        normed = normed * conv.input_norm.weight.view(1, 4, 1, 1) + conv.input_norm.bias.view(1, 4, 1, 1)
        expected = branch_loop(conv, normed, padding=(1, 1))
        assert_same_gradients(conv(x), expected, [x, *conv.parameters()])
        assert_close(conv.input_norm.running_mean, 0.1 * mean.flatten().detach())
        assert torch.isfinite(conv.eval()(x)).all() and int(conv.input_norm.num_batches_tracked) == 1

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    def test_low_precision(self, cls, dtype):
        conv = cls(2, 3, 3, padding=1, num_bases=2, bias=True).to(dtype)
        x = torch.randn(1, conv.num_folded * 2, 5, 6, dtype=dtype, requires_grad=True)
        out = conv(x)
        assert out.dtype == dtype
        assert_close(out.double(), copy.deepcopy(conv).double()(x.double()), rtol=0.03, atol=0.03)
        out.sum().backward()
        for leaf in (x, conv.weight):
            assert leaf.grad.dtype == dtype and leaf.grad.isfinite().all() and leaf.grad.any()

    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    def test_autocast(self, cls):
        conv = cls(2, 3, 3, padding=1, num_bases=2, activation=dict(type='mmgroupnet.ShiftedSign'))
        x = torch.randn(1, conv.num_folded * 2, 5, 6, requires_grad=True)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = conv(x)
        assert out.dtype == torch.bfloat16
        assert_close(out.float(), conv(x), rtol=0.03, atol=0.03)
        out.sum().backward()
        assert conv.weight.grad.dtype == torch.float32 and conv.weight.grad.abs().sum() > 0


class TestLayerwiseBinaryConv2d:
    @pytest.mark.parametrize('learned_scales', [False, True])
    @pytest.mark.parametrize('num_bases', [1, 2, 5])
    def test_sum_of_convs(self, num_bases, learned_scales):
        conv = LayerwiseBinaryConv2d(3, 2, 3, padding=1, num_bases=num_bases, learned_scales=learned_scales).double()
        x = double_input(3)
        assert conv(x).shape == (2, 2, 7, 9)
        assert conv.weight.shape == (num_bases * 2, 3, 3, 3)
        expected = layerwise_sum(conv, x, padding=(1, 1))
        leaves = [x, *conv.parameters()]
        assert len(leaves) == (3 if learned_scales else 2)
        assert_same_gradients(conv(x), expected, leaves)

    @settings(deadline=None, max_examples=60)
    @given(conv_options(per_branch_dilation=False), st.booleans(), seeds())
    def test_grid(self, drawn, learned_scales, seed):
        layer, pads, size = drawn
        torch.manual_seed(seed)
        conv = double(LayerwiseBinaryConv2d(**layer, learned_scales=learned_scales))
        x = double_input(conv.in_channels, *size)
        options = {key: layer[key] for key in ('stride', 'dilation', 'groups', 'padding_value')}
        expected = layerwise_sum(conv, x, padding=pads, **options)
        assert_same_gradients(conv(x), expected, [x, *conv.parameters()])

    def test_merges_what_folded_branches_keep_apart(self):
        layerwise = LayerwiseBinaryConv2d(3, 2, 3, num_bases=4).double()
        folded = BinaryConv2d(3, 2, 3, num_bases=4).double()
        folded.load_state_dict(layerwise.state_dict())
        x = double_input(3)
        branches = folded(torch.cat([x] * 4, dim=1)).chunk(4, dim=1)
        assert_same_gradients(layerwise(x), sum(branches) / 4, [x])

    def test_one_base_is_a_plain_binary_conv(self):
        layerwise, plain = LayerwiseBinaryConv2d(3, 2, 3, bias=True), BinaryConv2d(3, 2, 3, bias=True)
        plain.load_state_dict(layerwise.state_dict())
        x = torch.randn(2, 3, 5, 6)
        assert_close(layerwise(x), plain(x))

    def test_bias_norm_and_shift_are_those_of_one_layer(self):
        conv = LayerwiseBinaryConv2d(
            3,
            2,
            3,
            num_bases=4,
            bias=True,
            input_norm=dict(type='BN'),
            activation=dict(type='mmgroupnet.ShiftedSign'),
        )
        assert conv.bias.shape == (2,)
        assert conv.input_norm.num_features == 3
        assert conv.activation.shift.shape == (3,)


class TestBadInput:
    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize(
        'options, message',
        [
            (dict(num_bases=0), r'num_bases=0: .* an int >= 1'),
            (dict(num_bases=-2), r'num_bases=-2: .* an int >= 1'),
            (dict(groups=3), r'groups=3 does not divide in_channels=4 and out_channels=6'),
            (dict(groups=4), r'groups=4 does not divide in_channels=4 and out_channels=6'),
            (dict(groups=0), r'groups=0 does not divide'),
            (dict(padding_value=2), r'padding_value=2: a padded sign can be \+1, -1 or 0'),
            (dict(padding_value=0.5), r'padding_value=0\.5: a padded sign can be'),
            (dict(kernel_size=0), r'kernel_size=0: give an int >= 1 or a \(height, width\) pair'),
            (dict(kernel_size=(3, 3, 3)), r'kernel_size=\(3, 3, 3\): give an int >= 1 or'),
            (dict(kernel_size=(3, 2.5)), r'kernel_size=\(3, 2\.5\): give an int >= 1 or'),
            (dict(stride=0), r'stride=0: give an int >= 1 or'),
            (dict(stride=(1, 0)), r'stride=\(1, 0\): give an int >= 1 or'),
            (dict(padding=-1), r'padding=-1: give an int >= 0 or'),
            (dict(padding=(1,)), r'padding=\(1,\): give an int >= 0 or'),
            (dict(padding='valid'), r"padding='valid': give 'same', an int >= 0 or a \(height, width\) pair"),
            (dict(kernel_size=2, padding='same'), r"padding='same' needs odd kernels, kernel_size=\(2, 2\)"),
            (dict(kernel_size=(3, 4), padding='same'), r"padding='same' needs odd kernels, kernel_size=\(3, 4\)"),
            (dict(dilation=0), r'dilation=0: rates are ints >= 1'),
            (dict(dilation=(1, 2)), r'dilation=\(1, 2\) has 2 rates for num_bases=1: .* pair is not supported'),
            (dict(dilation=[2, 2], num_bases=3), r'dilation=\(2, 2\) has 2 rates for num_bases=3'),
            (dict(dilation=[1, 0], num_bases=2, padding='same'), r'dilation=\(1, 0\): rates are ints >= 1'),
            (dict(dilation=(1, 2), num_bases=2, padding=1), r"padding=1 would give .* size, give padding='same'"),
        ],
    )
    def test_arguments(self, cls, options, message):
        with pytest.raises(ValueError, match=message):
            cls(**(dict(in_channels=4, out_channels=6, kernel_size=3) | options))

    def test_layerwise_takes_one_dilation(self):
        with pytest.raises(ValueError, match=r'dilation=\(1, 2\): the bases .* give one int'):
            LayerwiseBinaryConv2d(4, 6, 3, num_bases=2, dilation=(1, 2), padding='same')

    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize('key, name', [('activation', 'Sine'), ('weight', 'HalfWeight')])
    def test_unknown_quantizer(self, cls, key, name):
        with pytest.raises(KeyError, match=f'mmgroupnet.{name} is not in the mmgroupnet::model registry'):
            cls(4, 6, 3, **{key: dict(type=f'mmgroupnet.{name}')})

    @pytest.mark.parametrize('shape', [(2, 4, 5, 5), (2, 16, 5, 5), (8, 5, 5), (2, 8, 5)])
    def test_input_of_folded_branches(self, shape):
        with pytest.raises(ValueError, match=r'input of shape .*: BinaryConv2d takes \(N, 2 \* 4, H, W\)'):
            BinaryConv2d(4, 6, 3, num_bases=2)(torch.randn(shape))

    def test_input_of_a_layerwise_conv(self):
        with pytest.raises(ValueError, match=r'\(2, 8, 5, 5\): LayerwiseBinaryConv2d takes \(N, 1 \* 4, H, W\)'):
            LayerwiseBinaryConv2d(4, 6, 3, num_bases=2)(torch.randn(2, 8, 5, 5))


class TestState:
    options = dict(
        kernel_size=3,
        num_bases=2,
        bias=True,
        activation=dict(type='mmgroupnet.ShiftedSign'),
        input_norm=dict(type='BN'),
    )

    @pytest.mark.parametrize('cls, extra', [(BinaryConv2d, {}), (LayerwiseBinaryConv2d, dict(learned_scales=True))])
    def test_state_dict_round_trip(self, cls, extra):
        conv, other = (cls(4, 6, **self.options, **extra) for _ in range(2))
        for parameter in conv.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(2, conv.num_folded * 4, 6, 7)
        conv(x)  # changes the running statistics
        other.load_state_dict(conv.state_dict())
        assert torch.equal(other.eval()(x), conv.eval()(x))
        norm = {f'input_norm.{key}' for key in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}
        merge = {'merge.scales'} if extra else set()
        assert set(conv.state_dict()) == {'weight', 'bias', 'activation.shift'} | norm | merge

    def test_the_default_holds_weights_alone(self):
        assert list(BinaryConv2d(4, 6, 3, num_bases=3).state_dict()) == ['weight']
        assert BinaryConv2d(4, 6, (3, 1), num_bases=3, groups=2).weight.shape == (18, 2, 3, 1)

    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize('num_bases', [1, 4])
    @pytest.mark.parametrize('groups', [1, 2])
    def test_initial_weights(self, cls, num_bases, groups):
        conv = cls(64, 32, 3, num_bases=num_bases, groups=groups, bias=True)
        fan_out = 32 // groups * 9
        for branch in conv.weight.detach().chunk(num_bases):
            assert abs(branch.mean()) < 0.01
            assert branch.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        assert not conv.bias.any()

    def test_init_weights_draws_again(self):
        conv = BinaryConv2d(16, 16, 3, bias=True)
        nn.init.ones_(conv.weight)
        nn.init.ones_(conv.bias)
        conv.init_weights()
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 144), rel=0.1) and not conv.bias.any()

    def test_repr(self):
        text = repr(BinaryConv2d(4, 6, (3, 1), stride=2, padding='same', dilation=[1, 2], groups=2, num_bases=2))
        assert text.startswith(
            'BinaryConv2d(\n  4, 6, kernel_size=(3, 1), stride=(2, 2), padding=same, dilation=(1, 2), groups=2, '
            'bias=False, num_bases=2, padding_value=1\n'
        )
        assert 'PolynomialSign' in text and 'TensorScaleWeight' in text
        assert repr(LayerwiseBinaryConv2d(4, 6, 3)).startswith('LayerwiseBinaryConv2d(')


class TestInsideStockModules:
    def test_conv_module(self):
        module = ConvModule(
            4,
            6,
            3,
            stride=2,
            padding=1,
            conv_cfg=dict(type='mmgroupnet.BinaryConv2d'),
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='ReLU'),
        ).double()
        assert isinstance(module.conv, BinaryConv2d) and module.conv.bias is None
        x = double_input(4)
        expected = module.norm(reference_conv(x, module.conv.weight, 2, (1, 1))).relu()
        assert_same_gradients(module(x), expected, [x, *module.parameters()])

    def test_conv_module_with_bias_and_groups(self):
        cfg = dict(type='mmgroupnet.LayerwiseBinaryConv2d', num_bases=3, padding_value=-1)
        module = ConvModule(4, 6, 3, padding=1, groups=2, conv_cfg=cfg, act_cfg=None).double()
        nn.init.normal_(module.conv.bias)
        x = double_input(4)
        expected = layerwise_sum(module.conv, x, padding=(1, 1), groups=2, padding_value=-1)
        assert_same_gradients(module(x), expected, [x, *module.parameters()])

    def test_conv_module_leaves_the_initial_weights_of_branches(self):
        # mmcv's own initialisation would count all bases as one wide conv and halve the standard deviation.
        module = ConvModule(32, 32, 3, conv_cfg=dict(type='mmgroupnet.LayerwiseBinaryConv2d', num_bases=4))
        assert module.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)

    def test_resnet(self):
        norm = dict(type='BN')
        backbone = ResNet(
            18, base_channels=4, stem_channels=4, conv_cfg=dict(type='mmgroupnet.BinaryConv2d', input_norm=norm)
        )
        convs = [module for module in backbone.modules() if isinstance(module, BinaryConv2d)]
        assert len(convs) == 20 and not any(type(module) is nn.Conv2d for module in backbone.modules())
        inputs = {}
        for index, conv in enumerate(convs):
            conv.activation.register_forward_pre_hook(lambda _, args, index=index: inputs.update({index: args[0]}))
        x = torch.randn(2, 3, 64, 64)
        outs = backbone(x)
        assert [out.shape for out in outs] == [(2, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
        assert not torch.equal(outs[-1][0], outs[-1][1])
        for x in inputs.values():
            assert 0.02 < (x >= 0).double().mean() < 0.98
        sum(out.sum() for out in outs).backward()
        assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())

    @pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
    def test_default_scopes(self, scope):
        registry = import_module(f'{scope}.registry').MODELS
        with DefaultScope.overwrite_default_scope(scope):
            conv = registry.build(
                dict(
                    type='mmgroupnet.BinaryConv2d',
                    in_channels=4,
                    out_channels=6,
                    kernel_size=3,
                    input_norm=dict(type='BN'),
                    activation=dict(type='mmgroupnet.ClippedIdentitySign'),
                    weight=dict(type='mmgroupnet.ChannelScaleWeight'),
                )
            )
            module = ConvModule(4, 6, 3, conv_cfg=dict(type='mmgroupnet.BinaryConv2d'), norm_cfg=dict(type='BN'))
        assert type(conv) is BinaryConv2d and type(module.conv) is BinaryConv2d
        assert type(conv.input_norm) is nn.BatchNorm2d
        assert type(conv.activation) is ClippedIdentitySign and type(conv.weight_quantizer) is ChannelScaleWeight


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_dtype_than_the_input(dtype):
    """The kernels read only float32; the signs of the weights are the same in every dtype."""
    torch.manual_seed(0)
    conv = BinaryConv2d(6, 4, 3, padding=1, weight=dict(type='mmgroupnet.UnscaledWeight'))
    x = torch.randn(2, 6, 5, 7)
    expected = conv(x).detach()
    assert torch.equal(conv.to(dtype)(x).detach().float(), expected)


def test_is_binary():
    assert BinaryConv2d(2, 2, 1).is_binary
    assert not BinaryConv2d(2, 2, 1, activation=dict(type='mmgroupnet.Tanh')).is_binary
    assert not BinaryConv2d(2, 2, 1, weight=dict(type='mmgroupnet.RealWeight')).is_binary


@pytest.mark.parametrize('memory_efficient', [True, False])
@pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
def test_a_bias_and_a_shift_under_autocast_keep_its_dtype(cls, memory_efficient):
    options = dict(activation=dict(type='mmgroupnet.ShiftedSign'), memory_efficient=memory_efficient)
    conv = cls(2, 3, 3, padding=1, num_bases=2, bias=True, **options)
    nn.init.normal_(conv.bias)
    x = torch.randn(1, conv.num_folded * 2, 5, 6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), conv(x), rtol=0.03, atol=0.03)
