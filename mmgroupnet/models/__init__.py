"""Backbones, necks and heads. Necks and heads subclass mmdet's: without mmdet they are not there, the backbones are."""

from importlib.util import find_spec

from mmgroupnet.models.backbones import CIFARResNet, GroupNetResNet

__all__ = ['CIFARResNet', 'GroupNetResNet']

if find_spec('mmdet') is not None:
    from mmgroupnet.models.dense_heads import BinaryFCOSHead
    from mmgroupnet.models.necks import BinaryFPN

    __all__ += ['BinaryFPN', 'BinaryFCOSHead']
