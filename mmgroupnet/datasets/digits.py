"""A small, real detection set made from scikit-learn's data: handwritten digits on photographs.

The digits are the 1,797 handwritten ones of ``sklearn.datasets.load_digits`` (8x8 pixels, UCI optical recognition
set), the backgrounds are crops of the two photographs of ``load_sample_images``. Nothing is downloaded.

What an annotation means
    * ``segmentation`` is the *whole* glyph in run-length code, even if another digit covers it (RLE, since a polygon
      cannot hold the holes of 0, 6, 8 and 9); ``area`` is its pixel count.
    * ``bbox`` is the tight box around that mask.
    * Annotations of one image are in drawing order: painting their masks in this order gives the visible extents and so
      the map for segmentation: 0 is the background, 1 to 10 are the digits 0 to 9.
    * ``source`` (index into ``load_digits()``) and ``angle`` (degrees, counter-clockwise) are extra keys that COCO
      readers ignore.

Training and validation images share neither a handwritten sample nor a part of a photograph.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mmgroupnet.errors import UserError

DIGIT_CLASSES = tuple('0123456789')

GENERATOR_VERSION = 2  # increase it whenever the same parameters give another set
STAMP_NAME = 'digits.json'

DIGITS_PER_IMAGE = (3, 5)
GLYPH_SIZE = (40, 80)  # pixels along a side of the 8x8 sample, whatever the image size
MAX_ANGLE = 10.0  # degrees
MASK_OPACITY = 0.35  # from this opacity on a pixel belongs to the digit: thin strokes of the samples are pale
MAX_OVERLAP = 0.2  # of the smaller of two boxes
MIN_IMAGE_SIZE = 128  # three of the largest glyphs (93 pixels when rotated) still find places
VAL_SHARE = 0.2  # of the handwritten samples of each class
VAL_PHOTO_SHARE = 0.4  # of the width of each photograph, its left end: both ends show building, trees and flower


class Glyph(NamedTuple):
    """An enlarged digit.

    Attributes:
        alpha: Opacity, float32 ``(h, w)`` in [0, 1], cropped to the visible part.
        mask: ``alpha >= MASK_OPACITY``, bool ``(h, w)``.
        box: Tight box of the mask inside the crop, ``(x, y, w, h)``.
    """

    alpha: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]


class Placement(NamedTuple):
    """The position of a glyph in its image: the top left pixel of its crop."""

    glyph: Glyph
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        x, y, w, h = self.glyph.box
        return self.x + x, self.y + y, w, h


class Sources(NamedTuple):
    """The material for the images of one split.

    Attributes:
        images: All handwritten samples, float32 ``(n, 8, 8)`` in [0, 1].
        samples: Indices of the split's samples, one array per class.
        photographs: The split's parts of the photographs, uint8 ``(h, w, 3)`` in BGR order.
    """

    images: np.ndarray
    samples: list[np.ndarray]
    photographs: list[np.ndarray]


@dataclass(frozen=True)
class DigitsParameters:
    """The parameters of a generated set; they are stored beside it as its stamp."""

    num_train: int
    num_val: int
    image_size: int
    seed: int
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        for name, smallest in (('num_train', 1), ('num_val', 1), ('image_size', MIN_IMAGE_SIZE), ('seed', 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise UserError(f'{name}={value!r}: give an integer of at least {smallest}.')


def generate_digits(
    out_dir: str | Path,
    num_train: int = 600,
    num_val: int = 120,
    image_size: int = 160,
    seed: int = 0,
) -> Path:
    """Write the digits set, for detection in COCO format and for segmentation as masks.

    The layout is ``annotations/instances_{train,val}.json``, ``{train,val}/*.jpg``, ``masks/{train,val}/*.png``. A
    complete set with the same parameters is kept; a generated set with other parameters is replaced. The set is built
    in a temporary folder beside ``out_dir`` and renamed at the end, so an interrupted run leaves no partial set.

    Args:
        out_dir: Folder of the set; may be a link to a folder.
        num_train: Number of training images.
        num_val: Number of validation images.
        image_size: Side of the square images in pixels, at least 128. The digits keep their 40-80 pixels.
        seed: Seed; the same one gives the same bytes.

    Returns:
        ``out_dir`` as a path.

    Raises:
        UserError: If a parameter is not an integer or too small, ``out_dir`` cannot be made or holds something that
            this function did not write, or scikit-learn is not installed.
    """
    parameters = DigitsParameters(num_train, num_val, image_size, seed)
    out_dir = Path(out_dir)
    target = out_dir.resolve()  # a link stays a link, its target is replaced
    if _is_complete(target, parameters):
        return out_dir
    _refuse_foreign_content(target)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
    except OSError as error:
        raise UserError(f'out_dir={str(out_dir)!r} cannot be made: {error.strerror}') from error
    try:
        new = workspace / 'new'
        _write_set(new, parameters)
        if target.exists():
            os.rename(target, workspace / 'old')
        os.rename(new, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return out_dir


def _is_complete(folder: Path, parameters: DigitsParameters) -> bool:
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text())
    except (OSError, ValueError):
        return False
    return stamp == asdict(parameters) and all(
        (folder / 'annotations' / f'instances_{split}.json').is_file()
        and sum(1 for _ in (folder / split).glob('*.jpg')) == number
        and sum(1 for _ in (folder / 'masks' / split).glob('*.png')) == number
        for split, number in (('train', parameters.num_train), ('val', parameters.num_val))
    )


def _refuse_foreign_content(folder: Path) -> None:
    if not folder.exists() or (folder / STAMP_NAME).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError(
            f'out_dir={str(folder)!r} holds something that is no generated digits set (there is no {STAMP_NAME}): '
            'give a new or empty folder, or remove it yourself.'
        )


def _write_set(folder: Path, parameters: DigitsParameters) -> None:
    train, val = _load_sources(np.random.default_rng([parameters.seed, 0]))
    (folder / 'annotations').mkdir(parents=True)
    for stream, split, sources, number in (
        (1, 'train', train, parameters.num_train),
        (2, 'val', val, parameters.num_val),
    ):
        rng = np.random.default_rng([parameters.seed, stream])
        coco = _write_split(folder, split, number, parameters.image_size, sources, rng)
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))
    # The stamp is written last: it says that the set is complete.
    (folder / STAMP_NAME).write_text(json.dumps(asdict(parameters), indent=2) + '\n')


def _load_sources(rng: np.random.Generator) -> tuple[Sources, Sources]:
    """scikit-learn's data, divided into training and validation."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise UserError(
            'the digits set is made from the data of scikit-learn, which is not installed: pip install scikit-learn'
        ) from error
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    photographs = [photograph[..., ::-1] for photograph in load_sample_images().images]
    train, val = _split_samples(digits.target, rng)
    return (
        Sources(images, train, [_photo_part(photograph, 'train') for photograph in photographs]),
        Sources(images, val, [_photo_part(photograph, 'val') for photograph in photographs]),
    )


def _split_samples(labels: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Indices of the training and of the validation samples, one array per class; no sample is in both."""
    train, val = [], []
    for label in range(len(DIGIT_CLASSES)):
        indices = rng.permutation(np.flatnonzero(labels == label))
        num_val = round(len(indices) * VAL_SHARE)
        val.append(indices[:num_val])
        train.append(indices[num_val:])
    return train, val


def _photo_part(photograph: np.ndarray, split: str) -> np.ndarray:
    border = round(photograph.shape[1] * VAL_PHOTO_SHARE)
    return photograph[:, :border] if split == 'val' else photograph[:, border:]


def _write_split(
    folder: Path, split: str, num_images: int, image_size: int, sources: Sources, rng: np.random.Generator
) -> dict:
    """Draw the images and masks of one split into new folders and return its COCO dictionary."""
    (folder / split).mkdir()
    (folder / 'masks' / split).mkdir(parents=True)
    low, high = DIGITS_PER_IMAGE
    counts = rng.integers(low, high + 1, num_images)
    digits = iter(_draw_digits(sources.samples, int(counts.sum()), rng))
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, count in enumerate(counts, start=1):
        chosen = [(*next(digits), rng.uniform(-MAX_ANGLE, MAX_ANGLE)) for _ in range(count)]
        draw = [partial(_random_glyph, sources.images[sample], angle, rng) for _, sample, angle in chosen]
        placements = _arrange(draw, image_size, rng)

        canvas = _background(sources.photographs[rng.integers(len(sources.photographs))], image_size, rng)
        mask = np.zeros((image_size, image_size), dtype=np.uint8)
        for (label, sample, angle), placement in zip(chosen, placements, strict=True):
            _paint(canvas, placement, rng)
            _region(mask, placement)[placement.glyph.mask] = label + 1
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=label + 1,
                    iscrowd=0,
                    **_geometry(placement, image_size),
                    source=sample,
                    angle=round(angle, 2),
                )
            )
        # Grain like a camera's: without it the enlarged crops would be smoother than any photograph.
        canvas += rng.normal(0, 2, canvas.shape)
        file_name = f'{image_id:06d}.jpg'
        _write_image(folder / split / file_name, canvas.round().clip(0, 255).astype(np.uint8))
        _write_image(folder / 'masks' / split / f'{image_id:06d}.png', mask)
        images.append(dict(id=image_id, file_name=file_name, width=image_size, height=image_size))
    return dict(
        info=dict(
            description='Handwritten digits on photographs, generated from the data that scikit-learn ships',
            version=str(GENERATOR_VERSION),
        ),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name, supercategory='digit') for i, name in enumerate(DIGIT_CLASSES, start=1)],
    )


def _draw_digits(samples: list[np.ndarray], total: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """``total`` pairs of label and sample in random order.

    Classes are balanced to within one, and within a class every sample is used equally often to within one.
    """
    labels = rng.permutation(np.arange(total) % len(samples))
    queues = [iter(np.resize(rng.permutation(indices), total)) for indices in samples]
    return [(int(label), int(next(queues[label]))) for label in labels]


def _random_glyph(image: np.ndarray, angle: float, rng: np.random.Generator) -> Glyph:
    return _render_glyph(image, rng.uniform(*GLYPH_SIZE), angle)


def _render_glyph(image: np.ndarray, size: float, angle: float) -> Glyph:
    """Enlarge an ``(8, 8)`` sample in [0, 1] smoothly to ``size`` pixels and rotate it by ``angle`` degrees."""
    side = round(size * 10 / 8)
    padded = np.pad(image, 1)  # strokes touch the border of the sample: let them fade out
    large = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
    rotation = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, 1.0)
    margin = side // 8
    rotation[:, 2] += margin
    large = cv2.warpAffine(large, rotation, (side + 2 * margin, side + 2 * margin), flags=cv2.INTER_LINEAR)
    # The samples are block averages of crisp strokes: a steeper curve gives the strokes their edges back.
    alpha = _smooth_step(large, 0.15, 0.85)
    x, y, w, h = _extents(alpha > 0)
    alpha = alpha[y : y + h, x : x + w]
    mask = alpha >= MASK_OPACITY
    return Glyph(alpha, mask, _extents(mask))


def _smooth_step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def _extents(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box ``(x, y, w, h)`` of the true pixels of a mask; the mask must have some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )


def _arrange(draw: Sequence[Callable[[], Glyph]], image_size: int, rng: np.random.Generator) -> list[Placement]:
    """Find a place for every glyph, inside the image and with little overlap; if one fails, start over with new
    sizes."""
    while True:
        placements: list[Placement] = []
        for glyph in (draw_one() for draw_one in draw):
            placement = _find_place(glyph, placements, image_size, rng)
            if placement is None:
                break
            placements.append(placement)
        else:
            return placements


def _find_place(
    glyph: Glyph, others: Iterable[Placement], image_size: int, rng: np.random.Generator
) -> Placement | None:
    height, width = glyph.alpha.shape
    for _ in range(20):
        x = int(rng.integers(image_size - width + 1))
        y = int(rng.integers(image_size - height + 1))
        placement = Placement(glyph, x, y)
        if all(_overlap(placement.box, other.box) <= MAX_OVERLAP for other in others):
            return placement
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two ``(x, y, w, h)`` boxes as a share of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def _background(photograph: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """A dimmed square crop of a photograph, perhaps mirrored, float64 ``(image_size, image_size, 3)``."""
    height, width = photograph.shape[:2]
    largest = min(height, width)
    side = int(rng.integers(min(96, largest), largest + 1))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    interpolation = cv2.INTER_AREA if side > image_size else cv2.INTER_CUBIC
    crop = cv2.resize(np.ascontiguousarray(crop), (image_size, image_size), interpolation=interpolation)
    return crop * rng.uniform(0.3, 0.5)


def _paint(canvas: np.ndarray, placement: Placement, rng: np.random.Generator) -> None:
    """Paint a glyph over the canvas in a bright, lightly tinted ink."""
    ink = rng.uniform(200, 255, 3)
    region = _region(canvas, placement)
    region += placement.glyph.alpha[..., None] * (ink - region)


def _region(canvas: np.ndarray, placement: Placement) -> np.ndarray:
    """The part of an image that the crop of a placed glyph covers, a view."""
    height, width = placement.glyph.mask.shape
    return canvas[placement.y : placement.y + height, placement.x : placement.x + width]


def _geometry(placement: Placement, image_size: int) -> dict:
    """The COCO keys ``bbox``, ``area`` and ``segmentation`` of a placed glyph."""
    mask = np.zeros((image_size, image_size), dtype=np.uint8, order='F')
    _region(mask, placement)[...] = placement.glyph.mask
    rle = coco_mask.encode(mask)
    return dict(
        bbox=list(placement.box),
        area=int(mask.sum()),
        segmentation=dict(size=[image_size, image_size], counts=rle['counts'].decode('ascii')),
    )


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == '.jpg' else []):
        raise OSError(f'could not write the image {str(path)!r}.')
