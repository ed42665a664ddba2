"""The operator Connect gives exactly the results of our op in torch."""

import numpy as np
import pytest
import torch

from mmgroupnet import ops
from tests.test_onnxruntime_ops.models import assert_equal, connect_node, nhwc


@pytest.mark.parametrize('has_gate', [False, True])
@pytest.mark.parametrize('has_merge_scales', [False, True])
@pytest.mark.parametrize('num_bases', [1, 3])
@pytest.mark.parametrize('size', [(1, 5, 7, 9), (2, 33, 40, 30), (3, 64, 1, 1)], ids=str)
def test_connect(library, size, num_bases, has_merge_scales, has_gate):
    batch, channels, height, width = size
    x = torch.randn(batch, num_bases * channels, height, width)
    merge_scales = torch.randn(num_bases) if has_merge_scales else None
    gate = torch.rand(num_bases) if has_gate else None
    node = connect_node(num_bases, merge_scales, gate)
    expected = ops.connect(x, num_bases, merge_scales, gate)
    for threads in (1, 2):
        assert_equal(node.run(library, {'x': nhwc(x)}, threads), expected)


@pytest.mark.parametrize('shape', [(0, 4, 4, 6), (1, 0, 4, 6)], ids=str)
def test_empty(library, shape):
    out = connect_node(2).run(library, {'x': np.empty(shape, np.float32)})
    assert out.shape == (*shape[:3], 3)
