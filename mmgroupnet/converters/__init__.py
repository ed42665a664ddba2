"""From the weights of other networks to ours."""

from mmgroupnet.converters.float_resnet import FromFloatResNet
from mmgroupnet.converters.official import convert_official

__all__ = ['FromFloatResNet', 'convert_official']
