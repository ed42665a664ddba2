"""Data sets that OpenMMLab lacks, and one that the project can make on the spot."""

from importlib.util import find_spec

from .digits import DIGIT_CLASSES, generate_digits

__all__ = ['DIGIT_CLASSES', 'generate_digits']

if find_spec('mmseg') is not None:
    from .camvid import CamVidDataset

    __all__ += ['CamVidDataset']
