from mmgroupnet.models.backbones.groupnet_resnet import GroupNetResNet

__all__ = ['GroupNetResNet']
