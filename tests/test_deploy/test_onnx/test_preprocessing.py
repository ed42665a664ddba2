"""The preprocessing in a graph equals that of the library's data preprocessor."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.deploy.onnx.preprocessing import read_preprocessor
from mmgroupnet.errors import UserError
from tests.onnx_files import PREPROCESSOR, pictures

_GREY = dict(mean=[127.5], std=[60.0])


@pytest.mark.parametrize(
    ('scope', 'config', 'task'),
    [
        ('mmdet', dict(type='DetDataPreprocessor', **PREPROCESSOR, bgr_to_rgb=True, pad_size_divisor=32), 'detection'),
        ('mmdet', dict(type='DetDataPreprocessor', pad_size_divisor=7, pad_value=114), 'detection'),
        ('mmdet', dict(type='DetDataPreprocessor', **_GREY, rgb_to_bgr=True), 'detection'),
        ('mmseg', dict(type='SegDataPreProcessor', **PREPROCESSOR, size=(200, 200)), 'segmentation'),
        (
            'mmseg',
            dict(type='SegDataPreProcessor', bgr_to_rgb=True, pad_val=2, test_cfg=dict(size=(80, 64))),
            'segmentation',
        ),
        ('mmseg', dict(type='SegDataPreProcessor', **PREPROCESSOR, test_cfg=dict(size_divisor=32)), 'segmentation'),
        ('mmpretrain', dict(type='ClsDataPreprocessor', **PREPROCESSOR, to_rgb=True), 'classification'),
        ('mmpretrain', dict(type='ClsDataPreprocessor', pad_size_divisor=32, pad_value=5), 'classification'),
    ],
    ids=str,
)
def test_the_same_input_for_the_network(scope, config, task):
    with DefaultScope.overwrite_default_scope(scope):
        preprocessor = MODELS.build(config)
    images = torch.from_numpy(pictures(2, 61, 90))
    inputs = [image.permute(2, 0, 1) for image in images]
    samples = None
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = [SegDataSample() for _ in inputs]
    expected = preprocessor(dict(inputs=inputs, data_samples=samples))['inputs']
    found_task, preprocessing = read_preprocessor(preprocessor)
    assert found_task == task
    assert torch.equal(preprocessing(images), expected)


def test_other_preprocessors_are_refused():
    with DefaultScope.overwrite_default_scope('mmdet'):
        preprocessor = MODELS.build(
            dict(type='MultiBranchDataPreprocessor', data_preprocessor=dict(type='DetDataPreprocessor'))
        )
    with pytest.raises(UserError) as caught:
        read_preprocessor(preprocessor)
    assert str(caught.value) == (
        'data_preprocessor=MultiBranchDataPreprocessor: the graph can hold DetDataPreprocessor, SegDataPreProcessor, '
        'ClsDataPreprocessor'
    )
