import pytest
import torch
from mmdet.registry import MODELS
from torch import nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d
from tests.batteries import HeadBattery, statistics
from tests.liveness import BALANCED, assert_alive, binary_layer_calls, estimate_statistics

COMMON = dict(
    num_classes=3,
    in_channels=8,
    feat_channels=8,
    stacked_convs=2,
    strides=[8, 16, 32],
    regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
    norm_cfg=dict(type='BN'),
)
CONFIG = dict(COMMON, type='mmgroupnet.BinaryFCOSHead', num_bases=2)
TRICKS = dict(norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, loss_bbox=dict(type='GIoULoss'))
SHAPES = [(8, 9, 14), (8, 5, 7), (8, 3, 4)]


class TestBinaryFCOSHead(HeadBattery):
    config = CONFIG
    input_shapes = SHAPES


class TestOneBase(HeadBattery):
    config = dict(CONFIG, num_bases=1)
    input_shapes = SHAPES


class TestFiveBasesWithScales(HeadBattery):
    config = dict(CONFIG, num_bases=5, learned_scales=True)
    input_shapes = SHAPES


class TestTricksOfTheConfigs(HeadBattery):
    config = dict(CONFIG, **TRICKS, binary_cfg=dict(weight=dict(type='mmgroupnet.ChannelScaleWeight')))
    input_shapes = SHAPES


class TestOtherWidthThanThePyramid(HeadBattery):
    config = dict(CONFIG, in_channels=6)
    input_shapes = [(6, *shape[1:]) for shape in SHAPES]


def build(**options):
    torch.manual_seed(0)
    head = MODELS.build(dict(CONFIG, **options))
    head.init_weights()
    return head


def pyramid(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, generator=generator) for shape in SHAPES]


def per_level(head, features):
    """All outputs of the head for each level, as one tensor per level."""
    return [torch.cat([out.flatten() for out in outs]) for outs in zip(*head(tuple(features)), strict=True)]


def test_only_the_predictors_are_full_precision():
    head = build()
    assert {name for name, module in head.named_modules() if isinstance(module, nn.Conv2d)} == {
        'conv_cls',
        'conv_reg',
        'conv_centerness',
    }
    towers = [module for module in head.modules() if isinstance(module, BinaryConv2d)]
    assert len(towers) == 2 * 2  # two towers of two convs, which all levels share
    assert {conv.num_bases for conv in towers} == {2}


def test_norms_are_per_level():
    """In training, the input of one level changes neither the outputs nor the running statistics of other levels."""
    outs, moved = [], []
    for factor in (1, 50):
        head = build()
        before = statistics(head)
        features = pyramid()
        features[1] = factor * features[1] + factor - 1
        outs.append(per_level(head, features))
        after = statistics(head)
        assert all(not torch.equal(after[name], before[name]) for name in before)
        head.eval()
        moved.append(per_level(head, pyramid(seed=1)))
    for first, second in (outs, moved):
        assert_close(first[0], second[0])
        assert_close(first[2], second[2])
        assert not torch.allclose(first[1], second[1])


def test_convs_are_shared_by_the_levels():
    head = build()
    before = per_level(head, pyramid())
    conv = next(module for module in head.cls_convs.modules() if isinstance(module, BinaryConv2d))
    nn.init.normal_(conv.weight)
    after = per_level(head, pyramid())
    assert not any(torch.equal(first, second) for first, second in zip(before, after, strict=True))


def test_every_conv_has_a_real_valued_skip():
    """If the norms behind the convs have weight 0, only the skips remain: all branches and their mean equal the normed
    input."""
    head = build().eval()
    tower = head.cls_convs[0]
    for norms in tower.norms:
        for norm in norms:
            nn.init.zeros_(norm.weight)
    for level, feature in enumerate(pyramid()):
        assert_close(tower((feature, level)), tower.input_norms[level](feature))


def test_rectified_inputs_keep_every_layer_alive():
    head = build(stacked_convs=4)
    features, others = ([feature.relu() + 0.1 for feature in pyramid(seed)] for seed in (0, 1))
    estimate_statistics(head, lambda: head(tuple(others)))
    calls = binary_layer_calls(head, lambda: head(tuple(features)))
    assert len(calls) == 2 * 4 * 3  # towers, convs, levels
    assert_alive(calls, BALANCED)


@pytest.mark.parametrize(
    'options, error, message',
    [
        (dict(conv_cfg=dict(type='Conv2d')), ValueError, 'conv_cfg=.*binary_cfg'),
        (dict(conv_bias=True), ValueError, 'conv_bias=True'),
        (dict(dcn_on_last_conv=True), ValueError, 'dcn_on_last_conv=True'),
        (dict(norm_cfg=None), ValueError, 'norm_cfg=None: the signs of BinaryFCOSHead need a norm in front of them'),
        (dict(num_bases=0), ValueError, 'num_bases=0'),
        (dict(num_bases=-2), ValueError, 'num_bases=-2'),
        (dict(num_base=2), TypeError, 'num_base'),
        (dict(binary_cfg=dict(activation=dict(type='mmgroupnet.HardSign'))), KeyError, r'mmgroupnet\.HardSign'),
        (dict(stacked_convs=0), ValueError, 'stacked_convs=0: a binary tower has at least 1 conv'),
        (dict(binary_cfg=dict(weight=dict(type='mmgroupnet.TenserScaleWeight'))), KeyError, 'TenserScaleWeight'),
        (dict(binary_cfg=dict(activations=dict(type='mmgroupnet.Tanh'))), TypeError, 'activations'),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        MODELS.build(dict(CONFIG, **options))


def test_number_of_bases_must_be_given():
    with pytest.raises(TypeError, match='num_bases'):
        MODELS.build(dict(COMMON, type='mmgroupnet.BinaryFCOSHead'))
