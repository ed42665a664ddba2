# As groupnet_r18_k5_modern_8xb32-100e_in1k.py, with a ResNet-34.
_base_ = 'groupnet_r18_k5_modern_8xb32-100e_in1k.py'

float_checkpoint = 'torchvision://resnet34'
model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint=float_checkpoint)))
