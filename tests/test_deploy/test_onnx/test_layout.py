"""Moving transposes through a graph until pairs of them cancel."""

import numpy as np
import onnx
import pytest
from onnxscript import ir

from mmgroupnet.deploy.onnx.layout import TO_NCHW, TO_NHWC, remove_transposes


def model_of(middle: str, has_other_reader: bool = False) -> ir.Model:
    """A model that transposes two channels-last maps to NCHW, computes ``m`` from them, and transposes it back."""
    turned = f'Transpose<perm = {list(TO_NCHW)}>'
    second = ', float[N, C, H, W] z' if has_other_reader else ''
    text = f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, H, W, C] a, float[N, H, W, C] b) => (float[N, H2, W2, C] y{second})
        {{
            s = {turned} (a)
            t = {turned} (b)
            {middle}
            {'z = Neg (s)' if has_other_reader else ''}
            n = Transpose<perm = {list(TO_NHWC)}> (m)
            y = Neg (n)
        }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def compute(model: ir.Model) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip('onnxruntime')
    generator = np.random.default_rng(0)
    given = {name: generator.standard_normal((2, 3, 5, 4), dtype=np.float32) for name in 'ab'}
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, given)


_RESIZE = """
    sizes = Constant<value_ints = [2, 4, 7, 9]> ()
    r = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (s, , , sizes)
    m = Relu (r)
"""


@pytest.mark.parametrize(
    ('middle', 'left'),
    [
        ('m = Identity (s)', 2),
        ('m = Add (s, t)', 0),
        ('r = Relu (s)\n m = Add (r, t)', 0),
        (_RESIZE, 0),
        # A softmax over the channels needs the NCHW layout.
        ('m = Softmax<axis = 1> (s)', 2),
        (_RESIZE.replace('"nearest",', '"linear",').replace(', nearest_mode = "floor"', ''), 2),
    ],
    ids=['identity', 'sum', 'relu and sum', 'nearest', 'softmax', 'linear'],
)
def test_transposes_around_what_knows_no_channels_are_gone(middle, left):
    model = model_of(middle)
    expected = compute(model)
    remove_transposes(model)
    assert sum(node.op_type == 'Transpose' for node in model.graph) == left
    for found, each in zip(compute(model), expected, strict=True):
        np.testing.assert_array_equal(found, each)


def test_a_transpose_that_others_read_stays():
    model = model_of('m = Relu (s)', has_other_reader=True)
    expected = compute(model)
    remove_transposes(model)
    assert [node.op_type for node in model.graph].count('Transpose') == 1
    for found, each in zip(compute(model), expected, strict=True):
        np.testing.assert_array_equal(found, each)
