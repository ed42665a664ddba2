import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from mmgroupnet.layers import LayerwiseBinaryConv2d, RealValuedSkip
from tests.batteries import DecodeHeadBattery
from tests.liveness import BALANCED, assert_alive, binary_layer_calls, estimate_statistics

CONFIG = dict(
    type='mmgroupnet.BinaryFCNHead', in_channels=8, in_index=1, channels=6, num_classes=5, num_bases=2, dropout_ratio=0
)
SHAPES = [(6, 17, 23), (8, 9, 12)]


class TestBinaryFCNHead(DecodeHeadBattery):
    config = dict(CONFIG, learned_scales=True)
    input_shapes = SHAPES


class TestAuxiliaryHead(DecodeHeadBattery):
    config = dict(CONFIG, num_convs=1, concat_input=False, in_index=0, in_channels=6)
    input_shapes = SHAPES


def build(**options):
    torch.manual_seed(0)
    head = MODELS.build(dict(CONFIG, **options))
    head.init_weights()
    return head


def test_every_conv_but_the_classifier_is_binary():
    head = build(num_convs=3)
    convs = [module for module in head.modules() if isinstance(module, LayerwiseBinaryConv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(8, 6), (6, 6), (6, 6), (14, 6)]
    assert all(conv.num_bases == 2 and isinstance(conv.input_norm, nn.BatchNorm2d) for conv in convs)
    assert [module for module in head.modules() if isinstance(module, nn.Conv2d)] == [head.conv_seg]
    assert not any(isinstance(module, nn.ReLU) for module in head.modules())


def test_skips_go_around_convs_that_keep_the_channels():
    head = build(num_convs=3).eval()
    assert [isinstance(conv, RealValuedSkip) for conv in head.convs] == [False, True, True]
    for conv in head.convs[1:]:
        assert isinstance(conv.conv, LayerwiseBinaryConv2d) and conv.norm is conv.module.norm
        nn.init.zeros_(conv.module.norm.weight)
    x = torch.randn(2, *SHAPES[1])
    assert torch.equal(head.convs(x), head.convs[0](x))


def test_alive_behind_a_rectified_map():
    head = build()
    maps = [(None, torch.randn(2, *SHAPES[1]).relu() + 0.1) for _ in range(2)]
    estimate_statistics(head, lambda: head(maps[0]))
    assert_alive(binary_layer_calls(head, lambda: head(maps[1])), BALANCED)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(conv_cfg=dict(type='Conv2d')), r"conv_cfg=\{'type': 'Conv2d'\}.*BinaryFCNHead has binary convs"),
        (dict(act_cfg=dict(type='ReLU')), 'act_cfg='),
        (dict(num_convs=0), 'num_convs=0.*at least 1'),
        (dict(num_bases=0), 'num_bases=0'),
        (dict(norm_cfg=None), 'norm_cfg=None: the signs of BinaryFCNHead need a norm in front of them'),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
