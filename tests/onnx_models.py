"""Small .onnx files of standard operators, with the metadata that the exporter writes."""

import hashlib
import json
from pathlib import Path

import onnx
import onnx.numpy_helper
import onnx.parser

# The mean of each channel.
CLASSIFIER = """(uint8[N, H, W, 3] image) => (float[N, 3] scores) {
    values = Cast<to = 1>(image)
    axes = Constant<value_ints = [1, 2]>()
    scores = ReduceMean<keepdims = 0>(values, axes)
}"""
# The strongest channel of each pixel.
SEGMENTOR = """(uint8[N, H, W, 3] image, int64[2] size) => (uint8[N, A, B] classes, float[N, 3, A, B] scores) {
    values = Cast<to = 1>(image)
    maps = Transpose<perm = [0, 3, 1, 2]>(values)
    start = Shape<end = 2>(maps)
    sizes = Concat<axis = 0>(start, size)
    scores = Resize<mode = "linear">(maps, , , sizes)
    best = ArgMax<axis = 1, keepdims = 0>(scores)
    classes = Cast<to = 2>(best)
}"""
# The same two objects in every picture, and a row that fills up a batch.
DETECTOR = """(uint8[N, H, W, 3] image) => (float[1, 3, 5] dets, int64[1, 3] labels) {
    dets = Constant<value = float[1, 3, 5] {4, 2.5, 10, 20.25, 0.875, 0.5, 1, 30, 13, 0.25, 0, 0, 0, 0, 0}>()
    labels = Constant<value = int64[1, 3] {1, 0, -1}>()
}"""
MAPS = """(uint8[N, H, W, 3] image) => (float[N, H, W, 3] map_0) {
    map_0 = Cast<to = 1>(image)
}"""


def hash_weights(model: onnx.ModelProto) -> str:
    """The sha256 of the weights, as the metadata have it."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        values = onnx.numpy_helper.to_array(tensor)
        digest.update(repr((tensor.name, str(values.dtype), values.shape)).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def onnx_model(body: str, task: str, opsets: str = '"" : 18', **metadata) -> onnx.ModelProto:
    """Builds a model.

    Args:
        body: Inputs, outputs and nodes in onnx's text format.
        task: Of the metadata.
        opsets: The domains that it imports. Default: the standard one.
        metadata: More of the metadata; a key with the value ``...`` is left out.

    Returns:
        The model.
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: [{opsets}]> tiny {body}')
    for tensor in model.graph.initializer:  # As bytes, as the exporter writes them.
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    values = dict(format=1, version='0.1.0', task=task, classes=['blue', 'green', 'red'], palette=None, resize=[],
                  weights_sha256=hash_weights(model))
    values = {key: value for key, value in {**values, **metadata}.items() if value is not ...}
    onnx.helper.set_model_props(model, {'mmgroupnet': json.dumps(values)})
    return model


def write_onnx(path: Path, body: str, task: str, **options) -> Path:
    """Writes what :func:`onnx_model` builds, and returns the path."""
    onnx.save(onnx_model(body, task, **options), path)
    return path
