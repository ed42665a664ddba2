from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryFCOSHead

__all__ = ['BinaryFCOSHead']
