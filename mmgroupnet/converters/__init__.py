"""Other people's models and weights, made ours."""

from mmgroupnet.converters.binarize import Binarization, binarize
from mmgroupnet.converters.binarized import BINARIZED_TYPE, build_binarized
from mmgroupnet.converters.float_resnet import FromFloatResNet
from mmgroupnet.converters.official import convert_official

__all__ = ['BINARIZED_TYPE', 'Binarization', 'FromFloatResNet', 'binarize', 'build_binarized', 'convert_official']
