"""Sheet of segmentations: a row per picture, with the ground truth and the predictions of one or several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmgroupnet.errors import UserError

_BACKGROUND = (250, 250, 248)
_TEXT = (40, 40, 40)
_OPACITY = 0.65  # of the colour of a class over the picture
_GAP = 8
_LEGEND_LINE = 26


class Row(NamedTuple):
    """A picture with class maps.

    Attributes:
        image: RGB, uint8 ``(h, w, 3)``.
        maps: Class indices ``(h, w)`` by the title of their column; pixels of no class (255) keep the picture's colour.
    """

    image: np.ndarray
    maps: Mapping[str, np.ndarray]


def predict_maps(config: str | Path, checkpoint: str | Path, images: Sequence[str | Path]) -> list[np.ndarray]:
    """Segments pictures with a model of mmseg, on the CPU.

    Args:
        config: Its config.
        checkpoint: Its checkpoint.
        images: Picture files.

    Returns:
        Class indices, ``(h, w)`` each.
    """
    from mmseg.apis import inference_model, init_model

    model = init_model(str(config), str(checkpoint), device='cpu')
    return [inference_model(model, str(image)).pred_sem_seg.data[0].numpy() for image in images]


def draw_segmentation_sheet(
    rows: Sequence[Row], classes: Sequence[str], palette: Sequence[Sequence[int]], title: str, picture_width: int = 320
) -> Image.Image:
    """Draws rows under a title, headings and a legend.

    Args:
        rows: The rows to draw, at least one; all with the same columns.
        classes: Names of the classes.
        palette: Their colours, RGB.
        title: A line above the pictures.
        picture_width: Width of each picture in pixels. Default: 320.

    Returns:
        The sheet, RGB.

    Raises:
        UserError: If there are no rows, or their columns differ.
    """
    if not rows or any(list(row.maps) != list(rows[0].maps) for row in rows):
        raise UserError(f'rows has {len(rows)} entries: give at least one row, and the same columns in all')
    columns = ['image', *rows[0].maps]
    pictures = [_draw_row(row, palette, picture_width) for row in rows]
    width = len(columns) * (picture_width + _GAP) + _GAP
    legend = _legend_lines(classes, width)
    top = 84 + len(legend) * _LEGEND_LINE
    sheet = Image.new('RGB', (width, top + sum(row[0].height + _GAP for row in pictures)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), title, fill=_TEXT, font=_font(22))
    for number, line in enumerate(legend):
        for x, index in line:
            y = 46 + number * _LEGEND_LINE
            draw.rectangle((x, y + 2, x + 16, y + 18), fill=tuple(palette[index]), outline=_TEXT)
            draw.text((x + 22, y), classes[index], fill=_TEXT, font=_font(15))
    for column, heading in enumerate(columns):
        draw.text((_GAP + column * (picture_width + _GAP), top - 26), heading, fill=_TEXT, font=_font(17))
    y = top
    for row in pictures:
        for column, picture in enumerate(row):
            sheet.paste(picture, (_GAP + column * (picture_width + _GAP), y))
        y += row[0].height + _GAP
    return sheet


def _draw_row(row: Row, palette: Sequence[Sequence[int]], width: int) -> list[Image.Image]:
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    height = round(row.image.shape[0] * width / row.image.shape[1])
    pictures = [row.image]
    for classes in row.maps.values():
        is_class = (classes < len(palette))[..., None]
        blended = (1 - _OPACITY) * row.image + _OPACITY * colours[classes.astype(np.uint8)]
        pictures.append(np.where(is_class, blended.round().astype(np.uint8), row.image))
    return [Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR) for picture in pictures]


def _legend_lines(classes: Sequence[str], width: int) -> list[list[tuple[int, int]]]:
    """The positions of the legend's entries, line by line, as (x, class index)."""
    lines: list[list[tuple[int, int]]] = [[]]
    x = _GAP
    for index, name in enumerate(classes):
        needed = 22 + round(_font(15).getlength(name)) + 18
        if x + needed > width and lines[-1]:
            lines.append([])
            x = _GAP
        lines[-1].append((x, index))
        x += needed
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
