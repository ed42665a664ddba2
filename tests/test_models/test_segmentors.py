"""Binary and stock backbones and decode heads in all combinations, in mmseg's EncoderDecoder."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.testing import assert_close

from tests.batteries import assert_finite_gradients
from tests.liveness import assert_alive, binary_layer_calls, estimate_statistics, real_pictures

NORM = dict(type='BN')
BACKBONES = dict(
    binary=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        num_bases=2,
        base_channels=8,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 'bpac', 'bpac'),
    ),
    stock=dict(
        type='mmseg.ResNet', depth=18, base_channels=8, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=NORM
    ),
)
HEADS = dict(
    aspp=dict(
        type='mmgroupnet.BinaryASPPHead', in_channels=64, in_index=3, channels=16, dilations=(1, 2, 4), num_bases=2
    ),
    fcn=dict(type='mmgroupnet.BinaryFCNHead', in_channels=64, in_index=3, channels=16, num_bases=2),
    fcn_16s=dict(type='mmgroupnet.FCNScoreHead', in_channels=[32, 64], in_index=[2, 3]),
    stock=dict(type='mmseg.ASPPHead', in_channels=64, in_index=3, channels=16, dilations=(1, 2, 4), norm_cfg=NORM),
)
AUXILIARY = dict(
    type='mmgroupnet.BinaryFCNHead',
    in_channels=32,
    in_index=2,
    channels=16,
    num_convs=1,
    concat_input=False,
    num_bases=2,
    num_classes=4,
    loss_decode=dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4),
)


def build(backbone: str = 'binary', head: str = 'aspp', **test_cfg) -> nn.Module:
    torch.manual_seed(0)
    segmentor = MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=BACKBONES[backbone],
            decode_head=dict(HEADS[head], num_classes=4, dropout_ratio=0),
            auxiliary_head=AUXILIARY,
            test_cfg=ConfigDict(dict(mode='whole') | test_cfg),
        )
    )
    segmentor.init_weights()
    return segmentor


def pictures(height: int = 64, width: int = 96) -> torch.Tensor:
    return (real_pictures(height, width).float() - 120) / 60


def samples(images: torch.Tensor) -> list[SegDataSample]:
    size = tuple(images.shape[2:])
    found = []
    for index in range(len(images)):
        found.append(SegDataSample(metainfo=dict(img_shape=size, ori_shape=size)))
        found[-1].gt_sem_seg = PixelData(data=torch.full((1, *size), index))
    return found


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_every_combination_trains_and_predicts(backbone, head):
    segmentor, images = build(backbone, head), pictures()
    losses = segmentor.loss(images, samples(images))
    assert {'decode.loss_ce', 'aux.loss_ce'} <= losses.keys()
    (losses['decode.loss_ce'] + losses['aux.loss_ce']).backward()
    assert_finite_gradients(segmentor)
    estimate_statistics(segmentor, lambda: segmentor.loss(images.flip(3), samples(images)))
    # The auxiliary head is called only in training.
    assert_alive(binary_layer_calls(segmentor, lambda: segmentor.loss(images, samples(images))))
    predicted = segmentor.predict(images, samples(images))
    assert [result.pred_sem_seg.shape for result in predicted] == [(64, 96)] * 2
    assert not torch.equal(predicted[0].seg_logits.data, predicted[1].seg_logits.data)


@pytest.mark.parametrize('head', HEADS)
def test_slides_of_the_whole_image_are_the_whole(head):
    whole = build(head=head).eval()
    slide = build(head=head, mode='slide', crop_size=(64, 96), stride=(48, 48)).eval()
    images = pictures()
    outs = [segmentor.predict(images, samples(images)) for segmentor in (whole, slide)]
    for one, other in zip(*outs, strict=True):
        assert_close(other.seg_logits.data, one.seg_logits.data)


def test_slides_cover_a_larger_image():
    slide = build(mode='slide', crop_size=(64, 64), stride=(40, 40)).eval()
    images = pictures(100, 130)
    (first, _) = slide.predict(images, samples(images))
    assert first.seg_logits.data.shape == (4, 100, 130) and first.seg_logits.data.isfinite().all()
    # The other windows begin at row 36, since the last one must end with the image, and at column 40.
    corner = slide.encode_decode(images[:1, :, :64, :64], [dict(img_shape=(64, 64))])[0, :, :36, :40]
    assert_close(first.seg_logits.data[:, :36, :40], corner)
