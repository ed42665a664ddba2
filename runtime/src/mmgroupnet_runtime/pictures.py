"""Reads picture files with Pillow, which is imported only when a picture is read or drawn."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmgroupnet_runtime.errors import UserError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


# How Pillow turns a picture upright, by its orientation in EXIF: numbers of Image.Transpose, which flip (0, 1), rotate
# by 90, 180 or 270 degrees (2, 3, 4), transpose or transverse (5, 6).
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
_ORIENTATION = 0x0112


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Lists pictures.

    Args:
        paths: Pictures, and folders of pictures.

    Returns:
        The files, in the order of ``paths``, those of a folder in alphabetical order.

    Raises:
        UserError: If a path does not exist, or a folder holds no pictures.
    """
    found = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(f'{path} is neither a picture nor a folder')
        pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not pictures:
            raise UserError(f'folder {path} holds no pictures ({", ".join(SUFFIXES)})')
        found += pictures
    return found


def read_picture(path: str | Path) -> np.ndarray:
    """Reads a picture as ``cv2.imread`` does: in colour, without its alpha channel, rotated by its EXIF data.

    Args:
        path: The file.

    Returns:
        BGR, uint8 ``(H, W, 3)``.

    Raises:
        UserError: If Pillow is missing, or cannot read the file.
    """
    (image_module,) = import_pillow('Image')
    try:
        with image_module.open(path) as file:
            file.load()
            # ImageOps.exif_transpose also writes the tags again, which fails for tags of a wrong type.
            turn = _TURNS.get(_orientation(file))
            image = file.copy() if turn is None else file.transpose(turn)
    except Exception as error:  # What Pillow raises for a damaged file depends on its format.
        raise UserError(f'cannot read the picture {path}: {error}') from error
    if image.mode.startswith('I'):  # 16-bit grey; cv2 keeps the upper eight bits.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def _orientation(file: Any) -> int:
    """The orientation in a picture's EXIF data; 1, upright, if it has none, or they are damaged."""
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many types for tags of a wrong type; the pixels may be good.
        return 1


def import_pillow(*modules: str) -> list:
    """Imports modules of Pillow.

    Args:
        modules: Their names, such as 'Image'.

    Returns:
        The modules.

    Raises:
        UserError: If Pillow is missing.
    """
    try:
        return [getattr(__import__('PIL', fromlist=[module]), module) for module in modules]
    except ImportError:
        raise UserError(
            'pictures are read and drawn by Pillow, which is missing: `pip install pillow`, or call '
            "mmgroupnet_runtime.load('model.onnx') with arrays"
        ) from None
