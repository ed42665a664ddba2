"""The answers of a model for a picture."""

from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """The objects in a picture, by descending score.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the picture, float32 ``(n, 4)``.
        labels: Indices of their classes, int64 ``(n,)``.
        scores: float32 ``(n,)``.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class Segmentation(NamedTuple):
    """The class of each pixel.

    Attributes:
        classes: Indices of the classes, uint8 ``(H, W)``, of the picture's size.
        scores: float32 ``(classes, H, W)``, or ``(1, H, W)`` if the model separates two classes by one score; None if
            the file was exported without ``--scores``.
    """

    classes: np.ndarray
    scores: np.ndarray | None


class Classification(NamedTuple):
    """The scores of the classes for a picture.

    Attributes:
        scores: float32 ``(classes,)``.
    """

    scores: np.ndarray
