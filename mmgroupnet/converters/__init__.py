"""Makes models of other libraries binary, and converts weights of other networks."""

from mmgroupnet.converters.binarize import binarize
from mmgroupnet.converters.binarized_model import build_binarized
from mmgroupnet.converters.float_resnet import FromFloatResNet
from mmgroupnet.converters.official import convert_official
from mmgroupnet.converters.report import Binarization, binarization_of

__all__ = [
    'Binarization',
    'FromFloatResNet',
    'binarization_of',
    'binarize',
    'build_binarized',
    'convert_official',
]
