"""Test-time augmentation: what the libraries' own classes get wrong or leave out is right here, or refused.

Each is there with its library alone.
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
