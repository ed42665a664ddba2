"""Classifiers exported as one graph give the results of their own ``predict``."""

import numpy as np
import pytest
import torch
from mmpretrain.models.heads import ClsHead

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from mmgroupnet.deploy.onnx.graph import Graph
from mmgroupnet.errors import UserError
from tests.onnx_files import BINARY_BACKBONE, PREPROCESSOR, build, pictures, run


def classifier(head='LinearClsHead', binary=False, **preprocessor):
    backbone = BINARY_BACKBONE if binary else dict(type='mmengine.TinyPyramid', strides=(4,))
    return build(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor', **PREPROCESSOR, to_rgb=True, **preprocessor),
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type=head, num_classes=5, in_channels=8, init_cfg=None),
        ),
    )


def predict(model, images):
    data = model.data_preprocessor(dict(inputs=torch.from_numpy(images).permute(0, 3, 1, 2)))
    with torch.no_grad():
        return np.stack([each.pred_score.numpy() for each in model.predict(data['inputs'])])


@pytest.mark.parametrize('head', ['LinearClsHead', 'MultiLabelLinearClsHead'])
@pytest.mark.parametrize('divisor', [1, 32])
def test_the_answer_is_that_of_predict(head, divisor):
    model = classifier(head, pad_size_divisor=divisor, pad_value=3)
    images = pictures(3, 45, 52)
    with torch.no_grad():
        (found,) = Graph(model)(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), predict(model, images), atol=1e-6)
    assert (abs(found.sum(1) - 1) < 1e-5).all() == (head == 'LinearClsHead')


def test_the_file_gives_the_answer_of_predict(tmp_path):
    model = pack(classifier(binary=True))
    exported = export(model, tmp_path / 'scores.onnx')
    assert exported.metadata['task'] == 'classification'
    for shape in ((1, 45, 52), (3, 64, 33)):
        images = pictures(*shape)
        found = run(tmp_path / 'scores.onnx', image=images)['scores']
        np.testing.assert_allclose(found, predict(model, images), atol=1e-5)


def test_heads_with_scores_of_their_own_are_refused():
    model = classifier()
    model.head.__class__ = type('Own', (ClsHead,), dict(_get_predictions=lambda *_: None))
    with pytest.raises(UserError, match='^head=Own: the exporter supports only heads that compute scores as ClsHead'):
        Graph(model)


def test_scores_beside_scores_are_refused():
    with pytest.raises(UserError, match=r'^scores=True \(--scores\) is for class maps, not for classification$'):
        Graph(classifier(), scores=True)
