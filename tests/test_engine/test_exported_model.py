"""Data samples of predictions that come from a file."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import MultiLabelLinearClsHead
from mmpretrain.structures import DataSample

from mmgroupnet.engine.exported_model import adopt_exported, set_class_scores

SCORES = [0.1, 0.45, 0.9, 0.6]


@pytest.mark.parametrize('options', [dict(), dict(thr=0.4), dict(topk=2), dict(thr=0.7, topk=3)], ids=str)
@pytest.mark.parametrize('wrapper', [None, 'mmgroupnet.Binarized'])
def test_a_head_for_several_classes_has_the_labels_of_its_own_predictions(options, wrapper, tmp_path):
    head = MultiLabelLinearClsHead(4, 2, **options)
    (expected,) = head._get_predictions(torch.logit(torch.tensor([SCORES])), [DataSample()])
    model = dict(type='ImageClassifier', head=dict(type='MultiLabelLinearClsHead', **options))
    cfg = Config(dict(default_scope='mmpretrain', model=dict(type=wrapper, model=model) if wrapper else model))
    (tmp_path / 'model.onnx').touch()
    adopt_exported(cfg, tmp_path / 'model.onnx')
    sample = DataSample()
    set_class_scores(sample, np.array(SCORES), cfg.model.multi_label)
    assert sample.pred_label.tolist() == expected.pred_label.tolist()


@pytest.mark.parametrize(
    ('scope', 'model'),
    [
        ('mmpretrain', dict(type='ImageClassifier', head=dict(type='LinearClsHead'))),
        ('mmpretrain', dict(type='ImageClassifier')),
        ('mmdet', dict(type='FCOS')),
    ],
)
def test_others_have_one(scope, model, tmp_path):
    cfg = Config(dict(default_scope=scope, model=model))
    (tmp_path / 'model.onnx').touch()
    adopt_exported(cfg, tmp_path / 'model.onnx')
    assert cfg.model == dict(type='mmgroupnet.OnnxModel', file=str(tmp_path / 'model.onnx'))
    sample = DataSample()
    set_class_scores(sample, np.array(SCORES))
    assert sample.pred_label.tolist() == [2]
