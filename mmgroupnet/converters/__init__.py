"""From the weights of other networks to ours."""

from mmgroupnet.converters.float_resnet import FromFloatResNet

__all__ = ['FromFloatResNet']
