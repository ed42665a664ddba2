# A small FCOS: Group-Net** ResNet-18 of half width with average pooling in its shortcuts, binary FPN and binary head of
# 64 channels. In full precision are the stem, 1x1 shortcuts, 1x1 laterals and the layers that predict.
num_bases = 4
binary_cfg = dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'))

model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=8,
    ),
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        base_channels=32,
        num_bases=num_bases,
        binary_downsample=False,
        avg_down=True,
        binary_cfg=binary_cfg,
    ),
    neck=dict(
        type='mmgroupnet.BinaryFPN',
        in_channels=[32, 64, 128, 256],
        out_channels=64,
        start_level=1,
        add_extra_convs='on_output',
        num_outs=4,
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        binary_laterals=False,  # 0.3 % of the weights; binary ones cost the demo 0.03 AP
    ),
    bbox_head=dict(
        type='mmgroupnet.BinaryFCOSHead',
        num_classes=80,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        strides=[8, 16, 32, 64],
        regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 1e8)),
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100
    ),
)
