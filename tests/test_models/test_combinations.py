"""Backbone, neck and head can each be binary or stock, selected only by the config."""

import itertools

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from mmgroupnet.layers import BinaryConv2d
from tests.batteries import assert_finite_gradients, detection_samples
from tests.liveness import assert_alive, binary_layer_calls, estimate_statistics, real_pictures

BINARY_CONV = dict(type='mmgroupnet.BinaryConv2d', input_norm=dict(type='BN'))
BACKBONES = dict(
    binary=dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8),
    stock=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False),
)
FPN = dict(in_channels=[8, 16, 32, 64], out_channels=8, start_level=1, add_extra_convs='on_output', num_outs=4)
NECKS = dict(
    binary=dict(FPN, type='mmgroupnet.BinaryFPN', num_bases=2),
    stock=dict(FPN, type='mmdet.FPN', relu_before_extra_convs=True),
)
HEAD = dict(
    num_classes=3,
    in_channels=8,
    feat_channels=8,
    stacked_convs=2,
    strides=[8, 16, 32, 64],
    regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)),
    norm_cfg=dict(type='BN'),
)
HEADS = dict(
    binary=dict(HEAD, type='mmgroupnet.BinaryFCOSHead', num_bases=2),
    stock=dict(HEAD, type='mmdet.FCOSHead'),
)
COMBINATIONS = list(itertools.product(['binary', 'stock'], repeat=3))
TEST_CFG = dict(nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)


def build(backbone: dict, neck: dict, head: dict):
    torch.manual_seed(0)
    detector = MODELS.build(
        dict(
            type='mmdet.FCOS',
            backbone=backbone,
            neck=neck,
            bbox_head=head,
            test_cfg=ConfigDict(TEST_CFG),
            data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[127] * 3, std=[60] * 3),
        )
    )
    detector.init_weights()
    return detector


def pictures(detector):
    """The real pictures after the detector's data preprocessor."""
    return detector.data_preprocessor(dict(inputs=list(real_pictures(96, 160)), data_samples=None))['inputs']


def check(detector):
    """Checks the losses and gradients of a training step, a prediction, and that every binary layer is alive."""
    images = pictures(detector)
    samples = detection_samples([[[8, 10, 60, 50], [60, 20, 150, 90]], []], (96, 160))
    losses = detector.loss(images, samples)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert_finite_gradients(detector)

    estimate_statistics(detector, lambda: detector(images.flip(3)))
    results = detector.predict(images, samples, rescale=False)
    assert [len(result.pred_instances) for result in results] == [5, 5]
    if any(isinstance(module, BinaryConv2d) for module in detector.modules()):
        assert_alive(binary_layer_calls(detector, lambda: detector(images)))


@pytest.mark.parametrize('backbone, neck, head', COMBINATIONS)
def test_every_combination_trains_and_predicts(backbone, neck, head):
    detector = build(BACKBONES[backbone], NECKS[neck], HEADS[head])
    for part, kind in ((detector.backbone, backbone), (detector.neck, neck), (detector.bbox_head, head)):
        assert any(isinstance(module, BinaryConv2d) for module in part.modules()) == (kind == 'binary')
    check(detector)


def test_stock_parts_take_binary_convs():
    """``conv_cfg`` is enough to binarise mmdet's own neck and head."""
    detector = build(
        BACKBONES['stock'],
        dict(NECKS['stock'], conv_cfg=BINARY_CONV, norm_cfg=dict(type='BN')),
        dict(HEADS['stock'], conv_cfg=BINARY_CONV),
    )
    assert sum(isinstance(module, BinaryConv2d) for module in detector.modules()) == (3 + 4) + 2 * 2
    check(detector)
