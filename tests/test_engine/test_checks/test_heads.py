"""The heads of stock models, most of them built on the meta device."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmgroupnet.engine.checks.classes import check_head
from mmgroupnet.engine.checks.heads import ClassHead, class_heads, has_text_classes, ignored_ids
from mmgroupnet.engine.configs import load_config
from mmgroupnet.errors import UserError
from tests.tiny_run import CONFIG


def build(name):
    cfg = load_config(name) if '::' in name else Config.fromstring(name, '.py')
    model = cfg.model
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    # Parts of mmpretrain compute with their weights when they are built, which is not possible on the meta device.
    device = 'cpu' if cfg.get('default_scope') == 'mmpretrain' else 'meta'
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.device(device):
        return MODELS.build(model)


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (CONFIG, [('bbox_head', 2)]),
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', []),
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
         [(f'roi_head.{head}[{stage}]', 80) for head in ('bbox_head', 'mask_head') for stage in range(3)]),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
         [('roi_head.bbox_head', 80), ('roi_head.mask_head', 80)]),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', [('panoptic_head', 133)]),
        ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
         [('student.roi_head.bbox_head', 80)]),
        ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', [('decode_head', 19), ('auxiliary_head', 19)]),
        ('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
         [('decode_head', 19), ('auxiliary_head[0]', 19), ('auxiliary_head[1]', 19)]),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', [('head', 1000)]),
        ('mmpretrain::lenet/lenet5_mnist.py', [('backbone', 10)]),
        ('mmpretrain::simclr/simclr_resnet50_8xb32-coslr-200e_in1k.py', []),
    ],
)  # fmt: skip
def test_heads_of_a_config(config, expected):
    assert [head[:2] for head in class_heads(build(config))] == expected


def test_heads_inside_wrappers():
    model = nn.Module()
    model.module = nn.Module()
    model.module.decode_head = nn.Module()
    model.module.decode_head.num_classes = 3
    assert list(class_heads(model)) == [ClassHead('module.decode_head', 3, False)]


def test_classes_as_text_are_not_counted():
    model = nn.Module()
    model.bbox_head = nn.Module()
    model.bbox_head.num_classes = 256
    model.language_model = nn.Module()
    assert has_text_classes(model)
    assert list(class_heads(model)) == []


def test_labels_that_are_mixed():
    """For mixed labels, mmpretrain's preprocessor has the number of classes."""
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.num_classes, model.data_preprocessor.to_onehot = 10, False
    assert list(class_heads(model)) == []
    model.data_preprocessor.to_onehot = True
    assert list(class_heads(model)) == [ClassHead('data_preprocessor', 10, False)]


def test_masks_for_any_class_are_not_counted():
    model = nn.Module()
    model.mask_head = nn.Module()
    model.mask_head.num_classes, model.mask_head.class_agnostic = 1, True
    assert list(class_heads(model)) == []


def test_ids_that_heads_ignore():
    model = nn.Module()
    model.decode_head, model.loss = nn.Module(), nn.Module()
    model.decode_head.num_classes, model.decode_head.ignore_index, model.loss.ignore_index = 2, 254, -100
    assert ignored_ids(model) == {254}


@pytest.mark.parametrize('num_classes', [1, 2])
def test_one_channel_for_two_classes(num_classes):
    head = nn.Module()
    head.num_classes, head.out_channels = num_classes, 1
    model = nn.Module()
    model.decode_head = head
    assert [head.num_classes for head in class_heads(model)] == [2] * (num_classes == 2)


class TestCheckHead:
    panoptic = SimpleNamespace(metainfo=dict(classes=('a', 'b', 'c'), thing_classes=('a',)))

    @pytest.fixture
    def said(self, monkeypatch):
        said = []
        monkeypatch.setattr('mmgroupnet.engine.checks.classes.print_log', lambda message, **_: said.append(message))
        return said

    def test_countable_classes(self):
        check_head(ClassHead('roi_head.bbox_head', 1, True), self.panoptic, 'train_dataloader')
        check_head(ClassHead('panoptic_head', 3, False), self.panoptic, 'train_dataloader')
        with pytest.raises(UserError, match='has 1 classes'):
            check_head(ClassHead('roi_head.bbox_head', 3, True), self.panoptic, 'train_dataloader')

    def test_data_without_classes(self):
        check_head(ClassHead('head', 3, False), SimpleNamespace(metainfo={}), 'train_dataloader')

    def test_a_classifier_of_more_classes_than_imagenet(self, said):
        class Known:
            METAINFO = dict(classes=('a', 'b'))
            metainfo = METAINFO

        check_head(ClassHead('head', 21841, False), Known(), 'test_dataloader')
        assert 'num_classes=21841' in said[0]
        with pytest.raises(UserError):
            check_head(ClassHead('head', 1, False), Known(), 'test_dataloader')
        with pytest.raises(UserError):
            check_head(ClassHead('bbox_head', 3, True), Known(), 'test_dataloader')

    def test_a_tracker_of_fewer_classes_than_its_test_data(self, said):
        class BaseVideoDataset:
            METAINFO = dict(classes=('pedestrian', 'car'))
            metainfo = METAINFO

        check_head(ClassHead('detector.bbox_head', 1, True), BaseVideoDataset(), 'val_dataloader')
        assert 'num_classes=1' in said[0]
        with pytest.raises(UserError):
            check_head(ClassHead('detector.bbox_head', 1, True), BaseVideoDataset(), 'train_dataloader')
