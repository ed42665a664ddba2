"""Exported models of two classes whose answers are known by hand."""

from pathlib import Path

from tests.onnx_models import write_onnx

# A box per channel of the picture, in parts of its width and height; its score is the mean of the channel.
_DETECTOR = """(uint8[N, H, W, 3] image) => (float[N, 3, 5] dets, int64[N, 3] labels)
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
_SEGMENTOR = """(uint8[N, H, W, 3] image, int64[2] size) => (uint8[N, h, w] classes, float[N, 2, h, w] scores)
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
# How blue and how green a picture is.
_CLASSIFIER = """(uint8[N, H, W, 3] image) => (float[N, 2] scores)
<int64[2] axes = {1, 2}, int64[2] channels = {0, 1}, float white = {255}>
{
    pixels = Cast<to = 1>(image)
    means = ReduceMean<keepdims = 0>(pixels, axes)
    shares = Div(means, white)
    chosen = Gather<axis = 1>(shares, channels)
    scores = Softmax(chosen)
}"""
_BODIES = dict(detection=_DETECTOR, segmentation=_SEGMENTOR, classification=_CLASSIFIER, maps=_CLASSIFIER)


def write_tiny_onnx(path: Path, task: str, classes: list[str] | None, palette: list[list[int]] | None = None) -> Path:
    """Writes a model.

    Args:
        path: The file.
        task: 'detection', 'segmentation' or 'classification'; 'maps' writes a classifier that says so.
        classes: For its metadata.
        palette: For its metadata. Default: None.

    Returns:
        The file.
    """
    return write_onnx(path, _BODIES[task], task, classes=classes, palette=palette)
