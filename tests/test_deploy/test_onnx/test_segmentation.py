"""Segmentors exported as one graph give the results of their own ``predict``."""

import numpy as np
import pytest
import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from mmgroupnet.deploy.onnx.graph import Graph
from mmgroupnet.errors import UserError
from tests.onnx_files import BINARY_BACKBONE, PREPROCESSOR, build, pictures, run

_PAD = dict(size_divisor=32)


def segmentor(binary=False, test_cfg=None, padding=_PAD, align_corners=False, **head):
    backbone = BINARY_BACKBONE if binary else dict(type='mmengine.TinyPyramid', strides=(4,))
    return build(
        'mmseg',
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', **PREPROCESSOR, bgr_to_rgb=True, test_cfg=padding),
            backbone=backbone,
            decode_head=dict(
                type='FCNHead',
                in_channels=8,
                channels=8,
                in_index=0,
                num_convs=1,
                concat_input=False,
                norm_cfg=dict(type='BN'),
                align_corners=align_corners,
                **(dict(num_classes=4) | head),
            ),
            test_cfg=test_cfg or dict(mode='whole'),
        ),
    )


def predict(model, images, size):
    """Class maps and scores of a segmentor's own ``predict``, in the size of the pictures before resizing."""
    shape = images.shape[1:3]
    samples = [SegDataSample(metainfo=dict(img_shape=shape, ori_shape=size)) for _ in images]
    inputs = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples))
    with torch.no_grad():
        found = model.predict(data['inputs'], data['data_samples'])
    return (
        np.concatenate([each.pred_sem_seg.data.numpy() for each in found]),
        np.stack([each.seg_logits.data.numpy() for each in found]),
    )


def assert_same(found, expected):
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    assert len(np.unique(expected[0])) > 1
    # The scores of two classes may be equal up to rounding.
    assert (found[0] != expected[0]).mean() < 1e-3


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('padding', [None, dict(size=(80, 70)), dict(size_divisor=32)], ids=str)
@pytest.mark.parametrize('head', [{}, dict(num_classes=2, out_channels=1, threshold=0.4)], ids=str)
def test_the_answer_is_that_of_predict(padding, align_corners, head):
    model = segmentor(padding=padding, align_corners=align_corners, **head)
    images = pictures(2, 61, 90)
    with torch.no_grad():
        found = Graph(model, scores=True)(torch.from_numpy(images), torch.tensor([40, 133]))
    assert found[0].dtype == torch.uint8
    assert_same([each.numpy() for each in found], predict(model, images, (40, 133)))


def test_the_file_gives_the_answer_of_predict(tmp_path):
    model = pack(segmentor(binary=True))
    exported = export(model, tmp_path / 'map.onnx', scores=True)
    assert exported.metadata['task'] == 'segmentation' and exported.num_packed == 2
    for shape, size in (((1, 61, 90), (61, 90)), ((3, 64, 96), (133, 40))):
        images = pictures(*shape)
        found = run(tmp_path / 'map.onnx', image=images, size=np.array(size))
        assert found['classes'].shape == (shape[0], *size) and found['classes'].dtype == np.uint8
        assert_same((found['classes'], found['scores']), predict(model, images, size))


def refused(model) -> str:
    with pytest.raises(UserError) as caught:
        Graph(model)
    return str(caught.value)


def test_sliding_windows_are_refused():
    model = segmentor(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(16, 16)))
    assert refused(model).startswith("test_cfg.mode='slide': the graph takes whole pictures, test_cfg.mode='whole': ")


def test_more_classes_than_a_byte_holds_are_refused():
    assert refused(segmentor(num_classes=257)).startswith('num_classes=257: a class map of 8 bits holds 256: ')


def test_answers_of_their_own_are_refused():
    model = segmentor()
    model.__class__ = type('Own', (EncoderDecoder,), dict(whole_inference=lambda *_: None))
    assert refused(model).startswith('model=Own with decode_head=FCNHead has its own whole_inference: ')


def test_cascades_are_refused():
    model = segmentor()
    model.decode_head = torch.nn.ModuleList([model.decode_head])
    assert refused(model) == (
        'model=EncoderDecoder: the exporter supports only an EncoderDecoder with one decode head: export its maps '
        '(--raw; raw=True) and decode them yourself'
    )
