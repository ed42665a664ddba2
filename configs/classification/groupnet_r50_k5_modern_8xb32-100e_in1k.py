# As groupnet_r18_k5_modern_8xb32-100e_in1k.py, with a ResNet-50.
_base_ = 'groupnet_r18_k5_modern_8xb32-100e_in1k.py'

float_checkpoint = 'torchvision://resnet50'
model = dict(
    backbone=dict(depth=50, init_cfg=dict(checkpoint=float_checkpoint)),
    head=dict(in_channels=2048),
)
