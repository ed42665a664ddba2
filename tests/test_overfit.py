"""A small detector with binary backbone, neck and head overfits two images of real digits."""

import cv2
import pytest
import torch
from mmdet.evaluation import eval_map
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mmgroupnet.datasets import DIGIT_CLASSES, generate_digits

NUM_IMAGES = 2
IMAGE_SIZE = 128
STEPS = 80
WIDTH = 24

CONFIG = dict(
    type='mmdet.FCOS',
    data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[90] * 3, std=[60] * 3, bgr_to_rgb=True),
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        stage_blocks=(1, 1, 1),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        base_channels=16,
        num_bases=2,
        avg_down=True,
    ),
    neck=dict(type='mmgroupnet.BinaryFPN', in_channels=[32, 64], out_channels=WIDTH, num_outs=2, num_bases=2),
    bbox_head=dict(
        type='mmgroupnet.BinaryFCOSHead',
        num_classes=len(DIGIT_CLASSES),
        in_channels=WIDTH,
        feat_channels=WIDTH,
        stacked_convs=2,
        strides=[8, 16],
        regress_ranges=((-1, 40), (40, 1e8)),
        num_bases=2,
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    test_cfg=ConfigDict(
        nms_pre=200, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
    ),
)


@pytest.fixture(scope='module')
def images_and_samples(tmp_path_factory) -> tuple[list[Tensor], list[DetDataSample]]:
    """Images ``(3, 128, 128)`` with a few of the embedded digits, and their ground truth."""
    root = generate_digits(
        tmp_path_factory.mktemp('overfit') / 'digits', num_train=NUM_IMAGES, num_val=1, image_size=IMAGE_SIZE
    )
    coco = COCO(str(root / 'annotations/instances_train.json'))
    images, samples = [], []
    for image in coco.loadImgs(coco.getImgIds()):
        picture = cv2.imread(str(root / 'train' / image['file_name']))
        images.append(torch.from_numpy(picture).permute(2, 0, 1).contiguous())
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        boxes = torch.tensor([annotation['bbox'] for annotation in annotations], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        shape = picture.shape[:2]
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([annotation['category_id'] - 1 for annotation in annotations])
        )
        samples.append(sample)
    return images, samples


def train(model: nn.Module, images: list[Tensor], samples: list[DetDataSample]) -> list[float]:
    """Trains on all images in one batch and returns the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS, pct_start=0.1)
    losses = []
    model.train()
    for _ in range(STEPS):
        data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
        loss = sum(model.loss(data['inputs'], data['data_samples']).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def average_precision(model: nn.Module, images: list[Tensor], samples: list[DetDataSample]) -> float:
    """The mean AP at IoU 0.5 over the classes, in eval mode."""
    model.eval()
    results = [result.pred_instances for result in model.test_step(dict(inputs=images, data_samples=samples))]
    detections = [
        [
            torch.cat([result.bboxes, result.scores[:, None]], dim=1)[result.labels == label].numpy()
            for label in range(len(DIGIT_CLASSES))
        ]
        for result in results
    ]
    annotations = [
        dict(bboxes=sample.gt_instances.bboxes.numpy(), labels=sample.gt_instances.labels.numpy()) for sample in samples
    ]
    return float(eval_map(detections, annotations, iou_thr=0.5, logger='silent')[0])


def test_overfits_two_images(images_and_samples):
    torch.manual_seed(0)
    model = MODELS.build(CONFIG)
    model.init_weights()
    before = average_precision(model, *images_and_samples)
    losses = train(model, *images_and_samples)
    after = average_precision(model, *images_and_samples)
    assert before < 0.05
    # Targets of centre-ness lie between 0 and 1, so their cross entropy, and the sum of the losses, stay above zero.
    assert losses[-1] < losses[0] / 3
    assert after > 0.95
