"""Backbones, necks and heads, and models under test-time augmentation.

Parts that subclass a library's class exist only if that library is installed; backbones always exist.
"""

from importlib.util import find_spec

from mmgroupnet.models import augmented
from mmgroupnet.models.augmented import *  # noqa: F403
from mmgroupnet.models.backbones import CIFARResNet, GroupNetResNet

__all__ = ['CIFARResNet', 'GroupNetResNet', *augmented.__all__]

if find_spec('mmdet') is not None:
    from mmgroupnet.models.dense_heads import BinaryFCOSHead
    from mmgroupnet.models.necks import BinaryFPN

    __all__ += ['BinaryFPN', 'BinaryFCOSHead']

if find_spec('mmseg') is not None:
    from mmgroupnet.models.decode_heads import BinaryASPPHead, BinaryFCNHead, FCNScoreHead

    __all__ += ['BinaryASPPHead', 'BinaryFCNHead', 'FCNScoreHead']
