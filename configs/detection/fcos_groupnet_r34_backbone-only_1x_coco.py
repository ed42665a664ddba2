# As fcos_groupnet_r50_backbone-only_1x_coco.py, with a Group-Net ResNet-34.
_base_ = 'fcos_groupnet_r50_backbone-only_1x_coco.py'

model = dict(backbone=dict(depth=34), neck=dict(in_channels=[64, 128, 256, 512]))
