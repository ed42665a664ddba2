"""Merged predictions of test-time augmentation, against values computed by hand."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.models import LinearClsHead, MultiLabelLinearClsHead
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from mmgroupnet.errors import UserError
from mmgroupnet.models import AugmentedClassifier, AugmentedDetector, AugmentedSegmentor


class Module(nn.Module):
    """A model with only the parts that the merging needs."""

    def __init__(self, **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def test_step(self, data: object) -> None:
        raise NotImplementedError


class Head(nn.Module):
    threshold = 0.4


def seg_sample(scores):
    sample = SegDataSample(metainfo=dict(img_path='a.png'))
    sample.set_data(dict(seg_logits=PixelData(data=torch.tensor(scores))))
    return sample


@pytest.mark.parametrize('head', [Head(), nn.ModuleList([nn.Identity(), Head()])], ids=['one head', 'cascade'])
def test_scores_of_one_channel_are_averaged_as_they_are(head):
    samples = [seg_sample([[[0.1, 0.9, 0.3]]]), seg_sample([[[0.2, 0.5, 0.6]]])]
    samples[0].gt_sem_seg = PixelData(data=torch.tensor([[[0, 1, 1]]]))
    (merged,) = AugmentedSegmentor(Module(decode_head=head)).merge_preds([samples])
    torch.testing.assert_close(merged.seg_logits.data, torch.tensor([[[0.15, 0.7, 0.45]]]))
    assert merged.pred_sem_seg.data.tolist() == [[[0, 1, 1]]]
    assert merged.gt_sem_seg.data.tolist() == [[[0, 1, 1]]] and merged.img_path == 'a.png'


def test_scores_of_several_channels_are_averaged_after_softmax():
    first, second = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[0.0, 0.0]], [[1.0, -0.5]]])
    samples = [seg_sample(scores.tolist()) for scores in (first, second)]
    (merged,) = AugmentedSegmentor(Module(decode_head=Head())).merge_preds([samples])
    expected = (first.softmax(0) + second.softmax(0)) / 2
    torch.testing.assert_close(merged.seg_logits.data, expected)
    # First pixel: 0.953 + 0.269 for class 0, 0.047 + 0.731 for class 1. Second: 0.269 + 0.622 and 0.731 + 0.378.
    assert merged.pred_sem_seg.data.tolist() == [[[0, 1]]]


def test_segmentors_without_scores_are_refused():
    sample = SegDataSample()
    sample.set_data(dict(pred_depth_map=PixelData(data=torch.zeros(1, 1, 1))))
    with pytest.raises(UserError, match='--tta: only scores of classes can be merged, and Module predicts pred_depth'):
        AugmentedSegmentor(Module()).merge_preds([[sample, sample]])


def det_sample(boxes, scores, flip=False, **extra):
    sample = DetDataSample(metainfo=dict(ori_shape=(20, 100), flip=flip, flip_direction='horizontal'))
    instances = InstanceData(
        bboxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=torch.zeros(len(boxes), dtype=torch.long)
    )
    for key, value in extra.items():
        instances[key] = value
    sample.pred_instances = instances
    return sample


def test_boxes_are_mirrored_back_and_merged():
    plain = det_sample([[10.0, 0.0, 30.0, 20.0]], [0.5])
    mirrored = det_sample([[70.0, 0.0, 90.0, 20.0], [0.0, 0.0, 10.0, 10.0]], [0.8, 0.3], flip=True)
    (merged,) = AugmentedDetector(module=Module()).merge_preds([[plain, mirrored]])
    found = merged.pred_instances
    assert found.bboxes.tolist() == [[10.0, 0.0, 30.0, 20.0], [90.0, 0.0, 100.0, 10.0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.3]))


def test_masks_and_panoptic_maps_are_refused():
    sample = det_sample([[0.0, 0.0, 1.0, 1.0]], [0.5], masks=torch.zeros(1, 20, 100))
    with pytest.raises(UserError, match='--tta: only boxes can be merged, and Module predicts masks'):
        AugmentedDetector(module=Module()).merge_preds([[sample, sample]])
    sample = DetDataSample()
    sample.pred_panoptic_seg = PixelData(sem_seg=torch.zeros(1, 2, 2))
    with pytest.raises(UserError, match='and Module predicts pred_panoptic_seg: test it without --tta'):
        AugmentedDetector(module=Module()).merge_preds([[sample, sample]])


def cls_sample(scores):
    scores = torch.tensor(scores)
    return DataSample().set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))


@pytest.mark.parametrize(
    ('head', 'labels'),
    [
        (LinearClsHead(3, 2), [1]),
        (MultiLabelLinearClsHead(3, 2, thr=0.3), [1, 2]),
        (MultiLabelLinearClsHead(3, 2, thr=None, topk=3), [1, 2, 0]),
    ],
    ids=['one label', 'labels above a threshold', 'best labels'],
)
def test_labels_are_those_of_the_mean_scores(head, labels):
    samples = [cls_sample([0.5, 0.4, 0.1]), cls_sample([0.0, 0.4, 0.6])]
    (merged,) = AugmentedClassifier(Module(head=head)).merge_preds([samples])
    torch.testing.assert_close(merged.pred_score, torch.tensor([0.25, 0.4, 0.35]))
    assert merged.pred_label.tolist() == labels


def test_models_without_scores_are_refused():
    with pytest.raises(UserError, match='--tta: only scores of classes can be merged, and Module predicts none'):
        AugmentedClassifier(Module()).merge_preds([[DataSample(), DataSample()]])
