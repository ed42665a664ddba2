"""Small models of the three libraries, and a function that runs their .onnx files in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.check import random_picture
from tests.operators import build_operators

CLASSES = 3
RESIZE = [dict(type='resize', width=64, height=48, keep_ratio=True)]
PREPROCESSOR = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# One binary block behind the stem: 8 channels at stride 4.
BINARY_BACKBONE = dict(
    type='mmgroupnet.GroupNetResNet',
    depth=18,
    num_bases=2,
    base_channels=8,
    stage_blocks=(1,),
    strides=(1,),
    dilations=(1,),
    out_indices=(0,),
)


def build(scope: str, config: dict) -> nn.Module:
    """A model in evaluation mode with random weights; its norms have random statistics and weights as well."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(ConfigDict(config))
    shake_norms(model)
    return model.eval()


def shake_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


class TinyPyramid(nn.Module):
    """A float backbone with one conv, which returns one level per stride."""

    def __init__(self, strides: tuple[int, ...], channels: int = 8) -> None:
        super().__init__()
        self.strides = strides
        self.conv = nn.Conv2d(3, channels, 3, strides[0], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x).relu()
        return tuple(nn.functional.max_pool2d(x, 3, stride // self.strides[0], 1) for stride in self.strides)


MODELS.register_module(module=TinyPyramid, force=True)


def detector(head: dict, test_cfg: dict | None = None, **options: object) -> nn.Module:
    """A one-stage detector with two levels. The random weights of its predictions are large, so the scores differ and
    many boxes pass the threshold."""
    test_cfg = dict(
        nms_pre=60, score_thr=0.3, min_bbox_size=0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
    ) | (test_cfg or {})
    config = dict(
        type='SingleStageDetector',
        data_preprocessor=dict(type='DetDataPreprocessor', **PREPROCESSOR, bgr_to_rgb=True, pad_size_divisor=16),
        backbone=dict(type='TinyPyramid', strides=(8, 16)),
        bbox_head=dict(num_classes=CLASSES, in_channels=8, feat_channels=8, stacked_convs=1, **head),
        test_cfg=test_cfg,
    )
    model = build('mmdet', config | options)
    for conv in model.bbox_head.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            # Without a norm the maps are larger: with std=0.3 many scores would be exactly 1 and their order arbitrary.
            nn.init.normal_(conv.weight, std=0.3 if 'norm_cfg' in head else 0.1)
            nn.init.zeros_(conv.bias)
    return model


FCOS = dict(type='FCOSHead', strides=(8, 16), regress_ranges=((-1, 32), (32, 1e8)), norm_cfg=dict(type='BN'))
_ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16])
_DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=(0.0, 0.1, 0.0, 0.0), target_stds=(0.1, 0.1, 0.2, 0.2))
RETINA = dict(
    type='RetinaHead', anchor_generator=_ANCHORS | dict(ratios=[0.5, 1.0, 2.0], scales_per_octave=2), bbox_coder=_DELTAS
)
SOFTMAX = RETINA | dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False))
ATSS = dict(type='ATSSHead', anchor_generator=_ANCHORS, bbox_coder=_DELTAS, norm_cfg=dict(type='BN'))
GFL = dict(
    type='GFLHead',
    anchor_generator=_ANCHORS,
    reg_max=4,
    norm_cfg=dict(type='BN'),
    loss_dfl=dict(type='DistributionFocalLoss'),
)
HEADS = dict(fcos=FCOS, retinanet=RETINA, softmax=SOFTMAX, atss=ATSS, gfl=GFL)


def binary_fcos() -> nn.Module:
    """A small detector with binary backbone, neck and head. The random weights of its predictions are large."""
    config = dict(
        type='FCOS',
        data_preprocessor=dict(type='DetDataPreprocessor', **PREPROCESSOR, bgr_to_rgb=True, pad_size_divisor=32),
        backbone=dict(
            type='mmgroupnet.GroupNetResNet',
            depth=18,
            num_bases=2,
            base_channels=8,
            stage_blocks=(1, 1),
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
        ),
        neck=dict(type='mmgroupnet.BinaryFPN', in_channels=[16], out_channels=16, num_outs=2, num_bases=2),
        bbox_head=dict(
            type='mmgroupnet.BinaryFCOSHead',
            num_classes=CLASSES,
            in_channels=16,
            feat_channels=16,
            stacked_convs=2,
            num_bases=2,
            strides=(8, 16),
            regress_ranges=((-1, 32), (32, 1e8)),
        ),
        test_cfg=dict(nms_pre=60, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
    )
    model = build('mmdet', config)
    nn.init.normal_(model.bbox_head.conv_cls.weight, std=0.1)
    nn.init.zeros_(model.bbox_head.conv_cls.bias)
    return model


def pictures(batch: int = 2, height: int = 61, width: int = 90) -> np.ndarray:
    """Random pictures of the shape ``(batch, height, width, 3)``."""
    return np.concatenate([random_picture(height, width, seed) for seed in range(batch)])


def detect(model: nn.Module, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The results of the detector's own ``predict``: boxes with scores, and labels, for each picture."""
    shape = images.shape[1:3]
    samples = [DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for _ in images]
    inputs = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples))
    with torch.no_grad():
        found = model.predict(data['inputs'], data['data_samples'], rescale=False)
    return [
        (
            torch.cat([each.pred_instances.bboxes, each.pred_instances.scores.unsqueeze(1)], 1).numpy(),
            each.pred_instances.labels.numpy(),
        )
        for each in found
    ]


def assert_detections(dets: np.ndarray, labels: np.ndarray, expected: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Compares an answer with the expected boxes and labels of each picture; all further rows must be empty."""
    assert dets.shape[1] == labels.shape[1] == max(len(label) for _, label in expected) > 0
    for i, (boxes, label) in enumerate(expected):
        np.testing.assert_array_equal(labels[i], np.pad(label, (0, len(labels[i]) - len(label)), constant_values=-1))
        np.testing.assert_allclose(dets[i, : len(label)], boxes, atol=2e-3, rtol=1e-5)
        assert not dets[i, len(label) :].any()


def run(path: Path, **given: np.ndarray) -> dict[str, np.ndarray]:
    """Runs a file in ONNX Runtime, with the operators of this checkout if the file needs them; returns the outputs."""
    onnxruntime = pytest.importorskip('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if any(opset.domain == 'mmgroupnet' for opset in onnx.load(path).opset_import):
        options.register_custom_ops_library(str(build_operators()))
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))
