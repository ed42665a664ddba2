import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from mmgroupnet.layers import LayerwiseBinaryConv2d
from tests.batteries import DecodeHeadBattery
from tests.liveness import BALANCED, assert_alive, binary_layer_calls, estimate_statistics

CONFIG = dict(
    type='mmgroupnet.BinaryASPPHead',
    in_channels=8,
    in_index=1,
    channels=6,
    dilations=(1, 2, 5),
    num_classes=5,
    num_bases=2,
    dropout_ratio=0,
)
SHAPES = [(6, 17, 23), (8, 17, 23)]


class TestBinaryASPPHead(DecodeHeadBattery):
    config = CONFIG
    input_shapes = SHAPES


class TestLearnedScales(DecodeHeadBattery):
    config = dict(CONFIG, learned_scales=True, num_bases=3, dilations=(1, 6, 12, 18))
    input_shapes = SHAPES


def build(**options):
    torch.manual_seed(0)
    head = MODELS.build(dict(CONFIG, **options))
    head.init_weights()
    return head


def test_every_conv_but_the_classifier_is_binary():
    head = build()
    convs = {name: conv for name, conv in head.named_modules() if isinstance(conv, LayerwiseBinaryConv2d)}
    assert {name: (conv.in_channels, conv.kernel_size[0], conv.dilation) for name, conv in convs.items()} == {
        'image_pool.2': (8, 1, 1),
        'aspp_modules.0.conv': (8, 1, 1),
        'aspp_modules.1.conv': (8, 3, 2),
        'aspp_modules.2.conv': (8, 3, 5),
        'bottleneck.conv': (4 * 6, 3, 1),
    }
    assert [name for name, conv in convs.items() if conv.input_norm is None] == ['image_pool.2']
    assert isinstance(head.image_pool[0], nn.BatchNorm2d)
    assert [module for module in head.modules() if isinstance(module, nn.Conv2d)] == [head.conv_seg]


def test_branches_see_as_far_as_their_rates():
    # Norms are in eval mode, so only convs combine pixels. With tanh, the gradient is not zero for any pixel that the
    # forward pass uses.
    real = dict(activation=dict(type='mmgroupnet.Tanh'), weight=dict(type='mmgroupnet.RealWeight'))
    head = build(binary_cfg=real).eval()
    for module, radius in zip(head.aspp_modules, (0, 2, 5), strict=True):
        x = torch.randn(1, 8, 17, 23, requires_grad=True)
        (gradient,) = torch.autograd.grad(module(x)[0, :, 8, 11].sum(), x)
        rows, columns = (gradient[0].abs().sum(0) > 0).nonzero(as_tuple=True)
        assert sorted({*rows.tolist()}) == sorted({8 - radius, 8, 8 + radius})
        assert sorted({*columns.tolist()}) == sorted({11 - radius, 11, 11 + radius})


def test_image_pooling_sees_everything():
    head = build().eval()
    x = torch.randn(1, 8, 17, 23, requires_grad=True)
    out = head.image_pool(x)
    assert out.shape == (1, 6, 1, 1)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert (gradient.abs().amax(1) > 0).all()


def test_alive_behind_a_rectified_map():
    head = build()
    maps = [(None, torch.randn(2, *SHAPES[1]).relu() + 0.1) for _ in range(2)]
    estimate_statistics(head, lambda: head(maps[0]))
    pooled, *others = binary_layer_calls(head, lambda: head(maps[1]))
    assert_alive(others, BALANCED)
    assert_alive([pooled])  # the pooled branch has one value per channel, too few to be balanced


@pytest.mark.parametrize('name', ['conv_cfg', 'act_cfg'])
def test_options_without_a_meaning_are_refused(name):
    with pytest.raises(ValueError, match=f'{name}=.*BinaryASPPHead has binary convs'):
        build(**{name: dict(type='ReLU')})


def test_no_norm_is_refused():
    with pytest.raises(ValueError, match='norm_cfg=None: the signs of BinaryASPPHead need a norm in front of them'):
        build(norm_cfg=None)
