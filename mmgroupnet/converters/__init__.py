"""Other people's models, made ours."""

from mmgroupnet.converters.binarize import Binarization, binarize
from mmgroupnet.converters.binarized import BINARIZED_TYPE, build_binarized

__all__ = ['BINARIZED_TYPE', 'Binarization', 'binarize', 'build_binarized']
