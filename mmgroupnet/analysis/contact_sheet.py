"""Contact sheet of a detector: ground truth on the left, detections on the right, judged by colour."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.fileio import load
from PIL import Image, ImageDraw, ImageFont

from mmgroupnet.errors import UserError

IOU_THRESHOLD = 0.5

_BACKGROUND = (250, 250, 248)
_TEXT = (40, 40, 40)
_TRUTH = (255, 255, 255)
_HIT = (64, 200, 96)
_WRONG = (240, 80, 70)
_MISSED = (255, 190, 40)

_GAP = 6  # between the two pictures of a tile; tiles are four times as far apart
_LINE = 2


class Tile(NamedTuple):
    """One image with its objects and detections.

    Attributes:
        image: RGB, uint8 ``(h, w, 3)``.
        true_boxes: Ground truth ``(m, 4)`` as x1, y1, x2, y2 in pixels.
        true_labels: Class indices ``(m,)``.
        boxes: Detections ``(n, 4)``, like ``true_boxes``.
        labels: Class indices ``(n,)``.
        scores: Scores ``(n,)``.
    """

    image: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def match_detections(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects of the same class, best score first, each object once, at an IoU of at least 0.5.

    Args:
        tile: The image's objects and detections.

    Returns:
        Which detections are hits, bool ``(n,)``, and which objects were found, bool ``(m,)``.
    """
    hits = np.zeros(len(tile.boxes), dtype=bool)
    found = np.zeros(len(tile.true_boxes), dtype=bool)
    overlaps = _iou(tile.boxes, tile.true_boxes)
    for index in np.argsort(-tile.scores, kind='stable'):
        candidates = np.where((tile.true_labels == tile.labels[index]) & ~found, overlaps[index], 0)
        if candidates.size and candidates.max() >= IOU_THRESHOLD:
            hits[index] = True
            found[candidates.argmax()] = True
    return hits, found


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairwise intersection over union ``(n, m)`` of boxes ``(n, 4)`` and ``(m, 4)``."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b))
    return intersection / (area_a[:, None] + area_b[None] - intersection).clip(min=1e-9)


def load_tiles(
    ann_file: str | Path,
    image_folder: str | Path,
    predictions_file: str | Path,
    classes: Sequence[str],
    num_tiles: int = 12,
    score_threshold: float = 0.3,
) -> list[Tile]:
    """Read evenly spaced images of a COCO set with their objects and the detections that ``tools/test.py --out`` wrote.

    Args:
        ann_file: COCO annotations.
        image_folder: Folder of the images that the annotations name.
        predictions_file: Results of the detector, ``.pkl``. Use only your own files, since a pickle can run code.
        classes: Class names in the order of the detector's labels.
        num_tiles: Number of images, all of them if there are fewer. Default: 12.
        score_threshold: Detections below it are left out. Default: 0.3.

    Returns:
        The tiles in the order of the annotation file.

    Raises:
        UserError: If an image of the selection has no result.
    """
    coco = json.loads(Path(ann_file).read_text())
    names = {category['id']: category['name'] for category in coco['categories']}
    results = {result['img_id']: result['pred_instances'] for result in load(str(predictions_file))}
    images = coco['images']
    selection = np.linspace(0, len(images) - 1, min(num_tiles, len(images))).round().astype(int)
    tiles = []
    for image in (images[index] for index in selection):
        if image['id'] not in results:
            raise UserError(f'{predictions_file} has no result for image id {image["id"]} of {ann_file}.')
        truth = [a for a in coco['annotations'] if a['image_id'] == image['id'] and names[a['category_id']] in classes]
        true_boxes = np.array([a['bbox'] for a in truth], dtype=float).reshape(-1, 4)
        true_boxes[:, 2:] += true_boxes[:, :2]
        found = results[image['id']]
        boxes, labels, scores = (np.asarray(found[key]) for key in ('bboxes', 'labels', 'scores'))
        kept = scores >= score_threshold
        tiles.append(
            Tile(
                image=np.array(Image.open(Path(image_folder) / image['file_name']).convert('RGB')),
                true_boxes=true_boxes,
                true_labels=np.array([classes.index(names[a['category_id']]) for a in truth], dtype=int),
                boxes=boxes[kept],
                labels=labels[kept],
                scores=scores[kept],
            )
        )
    return tiles


def draw_contact_sheet(
    tiles: Sequence[Tile],
    classes: Sequence[str],
    title: str,
    columns: int = 3,
    picture_size: int = 300,
) -> Image.Image:
    """Draw tiles side by side under a title and a legend.

    Args:
        tiles: The tiles to draw, at least one.
        classes: Class names, indexed by the tiles' labels.
        title: A line above the pictures.
        columns: Tiles in a row. Default: 3.
        picture_size: Longer side of a picture in pixels; a tile holds two pictures. Default: 300.

    Returns:
        The sheet, RGB.

    Raises:
        UserError: If there are no tiles.
    """
    if not tiles:
        raise UserError('tiles is empty: give at least one image to draw.')
    pictures = [_draw_tile(tile, classes, picture_size) for tile in tiles]
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    spacing = 4 * _GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    header = 96
    sheet_size = (columns * (width + spacing) + spacing, header + rows * (height + spacing))
    sheet = Image.new('RGB', sheet_size, _BACKGROUND)
    _draw_header(ImageDraw.Draw(sheet), title, tiles, spacing)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (spacing + column * (width + spacing), header + row * (height + spacing)))
    return sheet


def _draw_header(draw: ImageDraw.ImageDraw, title: str, tiles: Sequence[Tile], left: int) -> None:
    matches = [match_detections(tile) for tile in tiles]
    num_hits = sum(int(hits.sum()) for hits, _ in matches)
    num_wrong = sum(len(hits) for hits, _ in matches) - num_hits
    num_missed = sum(int((~found).sum()) for _, found in matches)
    draw.text((left, 14), title, fill=_TEXT, font=_font(24))
    x = left
    for colour, text in (
        (_TRUTH, 'left: ground truth'),
        (_HIT, f'right: found, class and place right ({num_hits})'),
        (_WRONG, f'wrong class or place ({num_wrong})'),
        (_MISSED, f'missed ({num_missed})'),
    ):
        draw.rectangle((x, 58, x + 18, 76), fill=colour, outline=_TEXT)
        draw.text((x + 26, 56), text, fill=_TEXT, font=_font(18))
        x += 26 + round(draw.textlength(text, font=_font(18))) + 32


def _draw_tile(tile: Tile, classes: Sequence[str], picture_size: int) -> Image.Image:
    """Ground truth beside detections, ``(2 w + gap, h)`` pixels."""
    hits, found = match_detections(tile)
    scale = picture_size / max(tile.image.shape[:2])
    height, width = (round(side * scale) for side in tile.image.shape[:2])
    enlarged = Image.fromarray(tile.image).resize((width, height), Image.Resampling.BICUBIC)
    truth = [_Mark(box, classes[label], _TRUTH) for box, label in zip(tile.true_boxes, tile.true_labels, strict=True)]
    seen = [_Mark(box, 'missed', _MISSED, label_below=True) for box in tile.true_boxes[~found]]
    for index in np.argsort(tile.scores, kind='stable'):  # the surest ones on top
        text = f'{classes[tile.labels[index]]}  {tile.scores[index]:.2f}'
        seen.append(_Mark(tile.boxes[index], text, _HIT if hits[index] else _WRONG))
    result = Image.new('RGB', (2 * width + _GAP, height), _BACKGROUND)
    result.paste(_draw_marks(enlarged, truth, scale), (0, 0))
    result.paste(_draw_marks(enlarged, seen, scale), (width + _GAP, 0))
    return result


class _Mark(NamedTuple):
    box: np.ndarray
    text: str
    colour: tuple[int, int, int]
    label_below: bool = False


def _draw_marks(picture: Image.Image, marks: Sequence[_Mark], scale: float) -> Image.Image:
    """A copy with boxes and, on patches of their colour, labels: outside of the box unless the picture ends there."""
    picture = picture.copy()
    draw, font = ImageDraw.Draw(picture), _font(15)
    width, height = picture.size
    corners = [(mark.box * scale).round().clip(0, (width - 1, height - 1) * 2).astype(int).tolist() for mark in marks]
    for mark, box in zip(marks, corners, strict=True):
        draw.rectangle(box, outline=mark.colour, width=_LINE)
    # Labels come after all boxes, so that no line crosses a text.
    for mark, (x1, y1, _, y2) in zip(marks, corners, strict=True):
        text_width, text_height = round(draw.textlength(mark.text, font=font)) + 6, 18
        x = max(min(x1, width - 1 - text_width), 0)
        y = min(y2, height - 1 - text_height) if mark.label_below else max(y1 - text_height, 0)
        draw.rectangle((x, y, x + text_width, y + text_height), fill=mark.colour)
        draw.text((x + 3, y), mark.text, fill=(0, 0, 0), font=font)
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
