"""Small .onnx files with standard operators and the exporter's metadata; their outputs can be computed by hand."""

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
# The same two objects for every picture, and one row of padding.
DETECTOR = """(uint8[N, H, W, 3] image) => (float[1, 3, 5] dets, int64[1, 3] labels) {
    dets = Constant<value = float[1, 3, 5] {4, 2.5, 10, 20.25, 0.875, 0.5, 1, 30, 13, 0.25, 0, 0, 0, 0, 0}>()
    labels = Constant<value = int64[1, 3] {1, 0, -1}>()
}"""
MAPS = """(uint8[N, H, W, 3] image) => (float[N, H, W, 3] map_0) {
    map_0 = Cast<to = 1>(image)
}"""

# One box per channel of the picture, as fractions of its width and height; the score is the mean of the channel.
_BOXES = """(uint8[N, H, W, 3] image) => (float[N, 3, 5] dets, int64[N, 3] labels)
<
    float[1, 3, 4] parts = {0, 0, 0.5, 0.5, 0.25, 0.25, 0.75, 1, 0, 0, 1, 1},
    int64[1, 3] classes = {0, 1, -1}, int64[2] axes = {1, 2}, int64[1] last = {2}, int64[4] whd = {2, 1, 2, 1},
    int64[1] three = {3}, int64[1] four = {4}, float white = {255}
>
{
    pixels = Cast<to = 1>(image)
    means = ReduceMean<keepdims = 0>(pixels, axes)
    shares = Div(means, white)
    scores = Unsqueeze(shares, last)
    shape = Shape(image)
    sides = Gather(shape, whd)
    scale = Cast<to = 1>(sides)
    count = Shape<start = 0, end = 1>(image)
    boxes_shape = Concat<axis = 0>(count, three, four)
    labels_shape = Concat<axis = 0>(count, three)
    box = Mul(parts, scale)
    boxes = Expand(box, boxes_shape)
    dets = Concat<axis = 2>(boxes, scores)
    labels = Expand(classes, labels_shape)
}"""
# Class 1 where the picture is red.
_RED_OR_NOT = """(uint8[N, H, W, 3] image, int64[2] size) => (uint8[N, h, w] classes, float[N, 2, h, w] scores)
<int64[1] red = {2}, int64[1] one = {1}, float half = {127.5}, float unit = {1}>
{
    pixels = Cast<to = 1>(image)
    maps = Transpose<perm = [0, 3, 1, 2]>(pixels)
    map = Gather<axis = 1>(maps, red)
    count = Shape<start = 0, end = 1>(image)
    sizes = Concat<axis = 0>(count, one, size)
    resized = Resize<mode = "nearest">(map, , , sizes)
    is_red = Greater(resized, half)
    share = Cast<to = 1>(is_red)
    rest = Sub(unit, share)
    scores = Concat<axis = 1>(rest, share)
    byte = Cast<to = 2>(is_red)
    classes = Squeeze(byte, one)
}"""
# Softmax of the mean blue and the mean green of a picture.
_BLUE_OR_GREEN = """(uint8[N, H, W, 3] image) => (float[N, 2] scores)
<int64[2] axes = {1, 2}, int64[2] channels = {0, 1}, float white = {255}>
{
    pixels = Cast<to = 1>(image)
    means = ReduceMean<keepdims = 0>(pixels, axes)
    shares = Div(means, white)
    chosen = Gather<axis = 1>(shares, channels)
    scores = Softmax(chosen)
}"""
# Models of two classes, by task; the last one is a classifier that is exported with the task 'maps'.
TWO_CLASSES = dict(detection=_BOXES, segmentation=_RED_OR_NOT, classification=_BLUE_OR_GREEN, maps=_BLUE_OR_GREEN)


def hash_weights(model: onnx.ModelProto) -> str:
    """The sha256 of the weights, as the exporter's metadata contain it."""
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
        task: The task in the metadata.
        opsets: The operator domains that the model imports. Default: the standard one.
        metadata: Further entries of the metadata; a key with the value ``...`` is left out.

    Returns:
        The model.
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: [{opsets}]> tiny {body}')
    for tensor in model.graph.initializer:  # The exporter's format needs the weights in raw_data.
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    values = dict(
        format=1,
        version='0.1.0',
        task=task,
        classes=['blue', 'green', 'red'],
        palette=None,
        resize=[],
        weights_sha256=hash_weights(model),
    )
    values = {key: value for key, value in {**values, **metadata}.items() if value is not ...}
    onnx.helper.set_model_props(model, {'mmgroupnet': json.dumps(values)})
    return model


def write_onnx(path: Path, body: str, task: str, **options) -> Path:
    """Writes the model of :func:`onnx_model` and returns the path."""
    onnx.save(onnx_model(body, task, **options), path)
    return path
