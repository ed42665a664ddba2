import pytest
import torch
from mmseg.registry import MODELS
from torch.nn.functional import conv2d, interpolate
from torch.testing import assert_close

from tests.batteries import DecodeHeadBattery

FCN32S = dict(type='mmgroupnet.FCNScoreHead', in_channels=8, in_index=1, num_classes=5, dropout_ratio=0)
FCN16S = dict(FCN32S, in_channels=[6, 8], in_index=[0, 1])
SHAPES = [(6, 17, 23), (8, 9, 12)]


class TestFCN32s(DecodeHeadBattery):
    config = FCN32S
    input_shapes = SHAPES


class TestFCN16s(DecodeHeadBattery):
    config = FCN16S
    input_shapes = SHAPES


class TestFCN8s(DecodeHeadBattery):
    """At output stride 8, where all maps have the same size."""

    config = dict(FCN32S, in_channels=[4, 6, 8], in_index=[0, 1, 2])
    input_shapes = [(4, 9, 12), (6, 9, 12), (8, 9, 12)]


@pytest.mark.parametrize('align_corners', [False, True])
def test_coarse_predictions_are_upsampled_and_added(align_corners):
    torch.manual_seed(0)
    head = MODELS.build(dict(FCN16S, align_corners=align_corners))
    head.init_weights()
    fine, coarse = (torch.randn(2, *shape) for shape in SHAPES)
    from_coarse = conv2d(coarse, head.conv_seg.weight, head.conv_seg.bias)
    from_fine = conv2d(fine, head.finer_scores[0].weight, head.finer_scores[0].bias)
    expected = from_fine + interpolate(from_coarse, SHAPES[0][1:], mode='bilinear', align_corners=align_corners)
    assert_close(head((fine, coarse)), expected)


def test_all_predictions_start_alike():
    torch.manual_seed(0)
    head = MODELS.build(dict(FCN16S, in_channels=[600, 800]))
    head.init_weights()
    for conv in (head.conv_seg, head.finer_scores[0]):
        assert_close(conv.weight.std(), torch.tensor(0.01), rtol=0.05, atol=0)
        assert not conv.bias.any()


def test_dropout_reaches_every_stage():
    torch.manual_seed(0)
    head = MODELS.build(dict(FCN16S, dropout_ratio=0.999))
    head.finer_scores[0].bias.data.fill_(3)
    head.conv_seg.bias.data.fill_(4)
    out = head(tuple(torch.ones(2, *shape) for shape in SHAPES))
    assert_close(out, torch.full_like(out, 7))


@pytest.mark.parametrize(
    'options', [dict(in_index=[0, 1]), dict(in_channels=[6, 8]), dict(in_channels=[], in_index=[])]
)
def test_stages_and_their_channels_must_match(options):
    with pytest.raises(ValueError, match='in_channels=.* and in_index=.*one entry per stage'):
        MODELS.build(dict(FCN32S, **options))


@pytest.mark.parametrize('option', [dict(channels=16), dict(input_transform='resize_concat')])
def test_options_that_only_other_heads_have(option):
    (name,) = option
    with pytest.raises(ValueError, match=f'{name}=.*: FCNScoreHead predicts straight from the stages of in_index'):
        MODELS.build(dict(FCN32S, **option))
