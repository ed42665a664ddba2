import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d
from tests.batteries import NeckBattery
from tests.liveness import BALANCED, assert_alive, binary_layer_calls, estimate_statistics

CONFIG = dict(type='mmgroupnet.BinaryFPN', in_channels=[8, 16, 32], out_channels=12, num_outs=5, num_bases=2)
SHAPES = [(8, 17, 23), (16, 9, 12), (32, 5, 6)]


class TestBinaryFPN(NeckBattery):
    config = dict(CONFIG, add_extra_convs='on_output')
    input_shapes = SHAPES


class TestExtraConvsOnInput(NeckBattery):
    config = dict(CONFIG, add_extra_convs='on_input', num_bases=3, learned_scales=True)
    input_shapes = SHAPES


class TestExtraConvsOnLateral(NeckBattery):
    config = dict(CONFIG, add_extra_convs='on_lateral', relu_before_extra_convs=True, start_level=1, num_outs=4)
    input_shapes = SHAPES


class TestPooledExtraLevels(NeckBattery):
    config = dict(CONFIG, num_bases=1)
    input_shapes = SHAPES


class TestFloatLaterals(NeckBattery):
    config = dict(CONFIG, binary_laterals=False, start_level=1, num_outs=3)
    input_shapes = SHAPES


def build(**options):
    torch.manual_seed(0)
    neck = MODELS.build(dict(CONFIG, **options))
    neck.init_weights()
    return neck


def test_every_conv_is_layerwise_binary_between_norms_and_nothing_is_rectified():
    neck = build(add_extra_convs='on_output')
    convs = [module for module in neck.modules() if isinstance(module, BinaryConv2d)]
    assert len(convs) == 3 + 5  # laterals, outputs
    for conv in convs:
        assert isinstance(conv, LayerwiseBinaryConv2d)
        assert conv.num_bases == 2
        assert isinstance(conv.input_norm, nn.BatchNorm2d)
        assert conv.bias is None
    assert sum(isinstance(module, nn.BatchNorm2d) for module in neck.modules()) == 2 * len(convs)
    assert not any(isinstance(module, nn.Conv2d | nn.ReLU | nn.PReLU | nn.Sigmoid) for module in neck.modules())


def test_full_precision_laterals():
    neck = build(binary_laterals=False, start_level=1, add_extra_convs='on_output', norm_cfg=dict(type='SyncBN'))
    assert [type(lateral.conv) for lateral in neck.lateral_convs] == [nn.Conv2d, nn.Conv2d]
    assert [lateral.conv.weight.shape for lateral in neck.lateral_convs] == [(12, 16, 1, 1), (12, 32, 1, 1)]
    assert all(isinstance(lateral.norm, nn.SyncBatchNorm) for lateral in neck.lateral_convs)
    assert not any(lateral.with_activation for lateral in neck.lateral_convs)
    assert all(isinstance(conv.conv, LayerwiseBinaryConv2d) for conv in neck.fpn_convs)


def test_attributes_of_the_output_convs_are_read_as_those_of_the_stock_neck():
    neck = build(add_extra_convs='on_output')
    for conv in neck.fpn_convs:
        assert isinstance(conv.conv, LayerwiseBinaryConv2d) and isinstance(conv.norm, nn.BatchNorm2d)
        assert conv.in_channels == conv.out_channels == 12


def test_options_reach_every_conv():
    neck = build(
        add_extra_convs='on_output',
        norm_cfg=dict(type='SyncBN'),
        binary_cfg=dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'), padding_value=-1),
    )
    convs = [module for module in neck.modules() if isinstance(module, BinaryConv2d)]
    assert {type(conv.weight_quantizer).__name__ for conv in convs} == {'ChannelScaleWeight'}
    assert {conv.padding_value for conv in convs} == {-1}
    assert all(isinstance(conv.input_norm, nn.SyncBatchNorm) for conv in convs)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in neck.modules())


def test_real_valued_skips_go_around_the_output_convs():
    """If the norms behind the output convs have weight 0, only the skips remain: the outputs equal the laterals, plus
    the upsampled coarser level."""
    neck = build(add_extra_convs='on_output').eval()
    for name, module in neck.named_modules():
        if name.startswith('fpn_convs') and isinstance(module, nn.BatchNorm2d) and not name.endswith('input_norm'):
            nn.init.zeros_(module.weight)
    inputs = [torch.randn(2, *shape) for shape in SHAPES]
    outs = neck(tuple(inputs))
    laterals = [lateral(x) for lateral, x in zip(neck.lateral_convs, inputs, strict=True)]
    assert torch.equal(outs[2], laterals[2])
    upsampled = nn.functional.interpolate(laterals[2], size=SHAPES[1][1:])
    assert torch.equal(outs[1], laterals[1] + upsampled)
    assert not outs[3].any()  # extra convs halve the size, so they have no skip


@pytest.mark.parametrize('extra', ['on_input', 'on_lateral', 'on_output'])
@pytest.mark.parametrize('relu_before_extra_convs', [False, True])
def test_rectified_inputs_keep_every_layer_alive(extra, relu_before_extra_convs):
    neck = build(add_extra_convs=extra, relu_before_extra_convs=relu_before_extra_convs)
    generator = torch.Generator().manual_seed(0)

    def rectified():
        return tuple(torch.randn(2, *shape, generator=generator).relu() + 0.1 for shape in SHAPES)

    statistics, inputs = rectified(), rectified()
    estimate_statistics(neck, lambda: neck(statistics))
    assert_alive(binary_layer_calls(neck, lambda: neck(inputs)), BALANCED)


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(num_bases=0), ValueError, 'num_bases=0'),
        (dict(num_bases=-1), ValueError, 'num_bases=-1'),
        (dict(conv_cfg=dict(type='Conv2d')), ValueError, 'conv_cfg=.*BinaryFPN has binary convs, .*leave it out'),
        (dict(act_cfg=dict(type='ReLU')), ValueError, 'act_cfg=.*BinaryFPN has binary convs'),
        (dict(no_norm_on_lateral=True), ValueError, 'no_norm_on_lateral=True: BinaryFPN has binary convs'),
        (dict(norm_cfg=None), ValueError, 'norm_cfg=None: the signs of BinaryFPN need a norm in front of them'),
        (dict(num_base=2), TypeError, 'num_base'),
        (dict(binary_cfg=dict(activation=dict(type='mmgroupnet.HardSign'))), KeyError, r'mmgroupnet\.HardSign'),
        (dict(binary_cfg=dict(weight=dict(type='mmgroupnet.TenserScaleWeight'))), KeyError, 'TenserScaleWeight'),
        (dict(binary_cfg=dict(paddingvalue=1)), TypeError, 'paddingvalue'),
        (dict(binary_cfg=dict(padding_value=2)), ValueError, 'padding_value=2'),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        MODELS.build(dict(CONFIG, **options))
