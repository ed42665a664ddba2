# As mask-rcnn_groupnet_r50_fpn_1x_coco.py, with ResNet-18.
_base_ = 'mask-rcnn_groupnet_r50_fpn_1x_coco.py'

model = dict(
    model=dict(
        backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
        neck=dict(in_channels=[64, 128, 256, 512]),
    )
)
