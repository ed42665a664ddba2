"""Data sets that OpenMMLab lacks, and data sets that the project generates."""

from importlib.util import find_spec

from .coco_split import split_coco
from .digit_crops import DigitCrops
from .digits import DIGIT_CLASSES, generate_digits
from .local_cifar10 import LocalCIFAR10

__all__ = ['DIGIT_CLASSES', 'DigitCrops', 'LocalCIFAR10', 'generate_digits', 'split_coco']

if find_spec('mmseg') is not None:
    from .camvid import CamVidDataset

    __all__ += ['CamVidDataset']
