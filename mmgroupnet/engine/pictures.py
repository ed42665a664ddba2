"""Finds and reads picture files, and names drawn pictures."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from mmgroupnet.errors import UserError

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(path: str | Path, out_dir: str | Path | None = None) -> list[str]:
    """Lists the pictures to predict on.

    Args:
        path: A picture, or a folder with pictures in it or its subfolders.
        out_dir: A folder whose pictures are left out, because they were drawn before. Default: None.

    Returns:
        The files, in alphabetical order.

    Raises:
        UserError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise UserError(f'{path} is neither a picture nor a folder')
    images = sorted(str(file) for file in path.rglob('*') if file.suffix.lower() in _SUFFIXES and not file.is_dir())
    drawn = path.resolve() if out_dir is None else Path(out_dir).resolve() / 'vis'
    if path.resolve() in drawn.parents:
        images = [image for image in images if not Path(image).resolve().is_relative_to(drawn)]
    if not images:
        raise UserError(f'folder {path} holds no pictures ({", ".join(_SUFFIXES)})')
    return images


def decode(content: bytes) -> np.ndarray | None:
    """A picture's pixels, 8-bit RGB, ``(H, W, 3)``; None if the file is not a picture or damaged."""
    if not content:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # Impossible sizes.
        return None
    return None if pixels is None else pixels[..., ::-1]


def image_folder(dataset: Mapping) -> str:
    """The folder of a data set's pictures according to its config: the images' prefix in the root."""
    prefix = dataset.get('data_prefix') or ''
    if isinstance(prefix, Mapping):
        prefix = next((prefix[key] for key in ('img_path', 'img') if prefix.get(key)), '')
    return os.path.join(dataset.get('data_root') or '', prefix if isinstance(prefix, str) else '')


def common_folder(folders: Iterable[str | Path]) -> str:
    """The deepest folder that contains all given folders; the current one if there are none."""
    return os.path.commonpath([os.path.abspath(folder) for folder in folders] or [os.getcwd()])


def make_folder(folder: str | Path) -> None:
    """Creates the folder of drawn pictures and its parents.

    Raises:
        UserError: If it cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f'folder {folder} for drawn pictures cannot be made: {error.strerror}') from error


class OutputFiles:
    """Unique names for drawn pictures: the names of the pictures, with their folders below a common one.

    Args:
        folder: Folder for the drawn pictures.
        root: The folder of the pictures. Pictures elsewhere keep all their folders.
    """

    def __init__(self, folder: str | Path, root: str | Path) -> None:
        self.folder = Path(folder)
        self.root = Path(os.path.abspath(root))
        self._pictures: dict[Path, str] = {}

    def path_of(self, picture: str) -> Path:
        """The file for a picture; the same one for the same picture."""
        path = Path(os.path.abspath(picture))
        if '://' in picture:
            name = Path(picture.partition('://')[2])
        elif path.is_relative_to(self.root):
            name = path.relative_to(self.root)
        else:
            name = path.relative_to(path.anchor)
        if not name.suffix or not cv2.haveImageWriter(name.name):
            name = name.with_name(f'{name.name}.png')
        found, number = self.folder / name, 1
        while self._pictures.setdefault(found, picture) != picture:
            number += 1
            found = self.folder / name.with_name(f'{name.stem}_{number}{name.suffix}')
        return found
