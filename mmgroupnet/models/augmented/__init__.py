"""Test-time augmentation. These classes fix or refuse cases that the libraries' own classes get wrong or leave out.

Each exists only if its library is installed.
"""

from importlib.util import find_spec

__all__ = []

if find_spec('mmdet') is not None:
    from mmgroupnet.models.augmented.detector import AugmentedDetector

    __all__ += ['AugmentedDetector']

if find_spec('mmseg') is not None:
    from mmgroupnet.models.augmented.segmentor import AugmentedSegmentor

    __all__ += ['AugmentedSegmentor']

if find_spec('mmpretrain') is not None:
    from mmgroupnet.models.augmented.classifier import AugmentedClassifier

    __all__ += ['AugmentedClassifier']
