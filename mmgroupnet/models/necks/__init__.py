from mmgroupnet.models.necks.binary_fpn import BinaryFPN

__all__ = ['BinaryFPN']
