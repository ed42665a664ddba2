"""Reads picture files with Pillow, which is imported only when a picture is read or drawn."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmgroupnet_runtime.errors import UserError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


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
    image_module, ops = import_pillow('Image', 'ImageOps')
    try:
        with image_module.open(path) as file:
            image = ops.exif_transpose(file)
    # What Pillow raises for a damaged file depends on its format.
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise UserError(f'cannot read the picture {path}: {error}') from error
    if image.mode.startswith('I'):  # 16-bit grey; cv2 keeps the upper eight bits.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


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
