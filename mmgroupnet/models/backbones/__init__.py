from mmgroupnet.models.backbones.cifar_resnet import CIFARResNet
from mmgroupnet.models.backbones.groupnet_resnet import GroupNetResNet

__all__ = ['CIFARResNet', 'GroupNetResNet']
