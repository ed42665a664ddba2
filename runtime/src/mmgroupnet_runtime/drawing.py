"""Draws answers on pictures with Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmgroupnet_runtime.answers import Detections, Segmentation
from mmgroupnet_runtime.errors import UserError
from mmgroupnet_runtime.pictures import import_pillow
from mmgroupnet_runtime.predictions import Answer, entries, entry_text

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

_OPACITY = 0.5  # of the colour of a class over the picture
_CAPTIONS = 5
_MARGIN = 2


def draw(
    picture: np.ndarray,
    answer: Answer,
    classes: list[str] | None,
    palette: list[list[int]] | None,
    score_thr: float = 0.3,
) -> Image.Image:
    """Draws an answer on its picture: boxes, colours of the classes, or a caption.

    Args:
        picture: BGR, uint8 ``(H, W, 3)``.
        answer: The model's answer for it.
        classes: Names of the classes, or None.
        palette: Their colours, ``[[r, g, b], ...]``, or None.
        score_thr: Detections below this score are not drawn. Default: 0.3.

    Returns:
        The drawn picture, RGB.

    Raises:
        UserError: If Pillow is missing or too old.
    """
    image_module, draw_module, font_module = import_pillow('Image', 'ImageDraw', 'ImageFont')
    pixels = picture[..., ::-1]
    if isinstance(answer, Segmentation):
        colours = np.array([_colour(palette, label) for label in range(256)], np.float32)
        pixels = (pixels * (1 - _OPACITY) + colours[answer.classes] * _OPACITY).astype(np.uint8)
    image = image_module.fromarray(np.ascontiguousarray(pixels))
    pen = draw_module.Draw(image)
    # Readable in pictures of any size: a fortieth of the shorter edge.
    size = max(10, min(image.size) // 40)
    try:
        font = font_module.load_default(size)
    except TypeError:
        raise UserError('this Pillow is too old to draw: `pip install "pillow>=10.1"`') from None
    found = entries(answer, classes)
    if isinstance(answer, Detections):
        # The best detection is drawn last, on top.
        for entry in reversed([entry for entry in found if entry['score'] >= score_thr]):
            colour = _colour(palette, entry['label'])
            pen.rectangle(entry['box'], outline=colour, width=max(1, size // 6))
            _write(image, pen, font, entry['box'][:2], entry_text(entry), colour, above=True)
        return image
    lower_edge = 0.0
    for entry in found[:_CAPTIONS]:
        colour = _colour(palette, entry['label'])
        lower_edge = _write(image, pen, font, (0, lower_edge), entry_text(entry), colour)
    return image


def _colour(palette: list[list[int]] | None, label: int) -> tuple[int, int, int]:
    """Returns the colour of a class. A class without one gets a hue that is far from those of the next classes."""
    if palette is not None and label < len(palette):
        red, green, blue = palette[label]
    else:
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.75, 0.95))
    return red, green, blue


def _write(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    corner: Sequence[float],
    text: str,
    colour: tuple[int, int, int],
    above: bool = False,
) -> float:
    """Writes a text on a coloured background, inside the picture, and returns the y of its lower edge.

    Args:
        image: The picture.
        pen: Pillow's drawing object for the picture.
        font: The font of the text.
        corner: x and y of the upper left corner, or of the lower left one with ``above``. It is moved if the text would
            not fit into the picture.
        text: The text.
        colour: The colour of the background, RGB.
        above: Whether the text is above the corner, so that it does not cover a box there. Default: False.
    """
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
    x = max(0, min(corner[0], image.width - width))
    y = max(0, min(corner[1] - height * above, image.height - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    # Black on light colours, white on dark ones, by how bright they look.
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + _MARGIN - left, y + _MARGIN - top), text, fill='black' if bright else 'white', font=font)
    return y + height + 1
