# Group-Net** ResNet-20, K = 3, binary from the first step, from the weights of a float ResNet-20.
_base_ = 'groupnet_r20_k3_scratch_cifar10.py'

# Any ResNet-20 of CIFAR-10; this one is from github.com/akamaster/pytorch_resnet_cifar10.
float_checkpoint = 'data/pretrained_cifar_resnet/resnet20-12fca82f.th'
model = dict(backbone=dict(init_cfg=dict(type='mmgroupnet.FromFloatResNet', checkpoint=float_checkpoint)))
