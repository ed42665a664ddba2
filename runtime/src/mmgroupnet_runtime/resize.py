"""The resize rule of a test pipeline, in numpy: the same pixels as mmcv's and mmpretrain's transforms with cv2."""

import numpy as np

from mmgroupnet_runtime.errors import UserError

_FIELDS = {
    'resize': {'width', 'height', 'keep_ratio'},
    'resize_edge': {'edge', 'length'},
    'center_crop': {'width', 'height'},
}
_STRIP = 65536  # int32 numbers in a strip
_EDGES = ('short', 'long', 'width', 'height')


def check_steps(steps: list[dict], crops: bool) -> None:
    """Checks the steps of a resize rule.

    Args:
        steps: As docs/onnx_file.md describes them.
        crops: Whether a crop is allowed.

    Raises:
        ValueError: If one is unknown or incomplete.
    """
    for step in steps:
        known = _FIELDS.get(step['type'])
        if known is None or known | {'type'} != step.keys() or (step['type'] == 'center_crop' and not crops):
            raise ValueError(f'resize step {step}')
        lengths = [step[key] for key in known & {'width', 'height', 'length'}]
        if not all(isinstance(length, int) and length > 0 for length in lengths):
            raise ValueError(f'resize step {step}')
        if step.get('edge', 'short') not in _EDGES:
            raise ValueError(f'resize step {step}')


def apply_steps(picture: np.ndarray, steps: list[dict]) -> np.ndarray:
    """Applies a resize rule.

    Args:
        picture: uint8 ``(H, W, C)``.
        steps: As :func:`check_steps` takes them.

    Returns:
        uint8 ``(h, w, C)``.

    Raises:
        UserError: If nothing is left of the picture.
    """
    for step in steps:
        height, width = picture.shape[:2]
        if step['type'] == 'center_crop':
            # Python's round, which rounds halves to even, as in mmcv.
            top, left = (max(0, round((size - step[key]) / 2)) for size, key in ((height, 'height'), (width, 'width')))
            picture = picture[top : top + step['height'], left : left + step['width']]
            continue
        new_width, new_height = _new_size(width, height, step)
        if min(new_width, new_height) < 1:
            raise UserError(f'picture of {width} x {height} pixels is too long and narrow: {step} leaves nothing of it')
        picture = resize_linear(picture, new_width, new_height)
    return picture


def _new_size(width: int, height: int, step: dict) -> tuple[int, int]:
    """Returns the width and height that a picture has after a step; both round as mmcv and mmpretrain do."""
    if step['type'] == 'resize_edge':
        length, edge = step['length'], step['edge']
        if edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height):
            return length, int(length * height / width)
        return int(length * width / height), length
    if not step['keep_ratio']:
        return step['width'], step['height']
    shorter, longer = sorted((step['width'], step['height']))
    factor = min(longer / max(height, width), shorter / min(height, width))
    return int(width * factor + 0.5), int(height * factor + 0.5)


# cv2's INTER_LINEAR for bytes. Weights are multiples of 1/2048. Pixels are blended along x without rounding, to at most
# 255 * 2^11, and four bits are dropped. Each of the two rows is weighted and loses sixteen more bits. The sum of both
# is four times the result, and is rounded. All numbers stay below 2^27. Exact arithmetic would give other pixels,
# because it drops no bits before the sum; but the network was trained and tested with these pixels.
def resize_linear(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes a picture as ``cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)`` does.

    Args:
        picture: uint8 ``(H, W, C)``.
        width: New width.
        height: New height.

    Returns:
        uint8 ``(height, width, C)``.
    """
    old_height, old_width, channels = picture.shape
    if (old_height, old_width) == (height, width):
        return picture
    first, weights = _taps(old_width, width)
    # Beyond the outermost columns, these get all the weight. Beyond the outermost rows, these are repeated and keep
    # both weights, as in cv2. The results differ, because bits are dropped.
    weights[:, first < 0] = weights[:, first >= old_width - 1] = [[2048], [0]]
    left, right = (
        (np.clip(column, 0, old_width - 1)[:, None] * channels + np.arange(channels)).ravel()
        for column in (first, first + 1)
    )
    left_weight, right_weight = np.repeat(weights, channels, axis=1)
    first, (top_weight, bottom_weight) = _taps(old_height, height)
    top, bottom = np.clip(first, 0, old_height - 1), np.clip(first + 1, 0, old_height - 1)

    flat = np.ascontiguousarray(picture).reshape(old_height, -1)
    out = np.empty((height, width * channels), np.uint8)
    # In strips that fit the cache.
    rows_per_strip = max(1, _STRIP // out.shape[1])
    for start in range(0, height, rows_per_strip):
        strip = slice(start, start + rows_per_strip)
        rows, places = np.unique([top[strip], bottom[strip]], return_inverse=True)
        source = flat[rows]
        blended = source[:, left] * left_weight
        blended += source[:, right] * right_weight
        blended >>= 4
        upper, lower = blended[places.reshape(2, -1)]
        upper *= top_weight[strip, None]
        lower *= bottom_weight[strip, None]
        upper >>= 16
        lower >>= 16
        upper += lower
        upper += 2
        upper >>= 2
        out[strip] = upper
    return out.reshape(height, width, channels)


def _taps(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first of the two pixels that make each new one, and the weights of both, int32 ``(2, new)``."""
    # In float64, then rounded to float32, as in cv2: some weights depend on this.
    scale = 1 / (new_length / length)
    position = ((np.arange(new_length) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048))
    return first.astype(np.int64), weights.astype(np.int32)
