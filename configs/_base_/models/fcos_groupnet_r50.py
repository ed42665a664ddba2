# FCOS, all binary: Group-Net ResNet-50, binary FPN, binary head. Stem and predictions are full precision.
num_bases = 5
norm_cfg = dict(type='SyncBN')

model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='mmgroupnet.GroupNetResNet', depth=50, num_bases=num_bases, norm_cfg=norm_cfg, with_cp=True),
    neck=dict(
        type='mmgroupnet.BinaryFPN',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        start_level=1,
        add_extra_convs='on_output',
        num_outs=5,
        num_bases=num_bases,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='mmgroupnet.BinaryFCOSHead',
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        strides=[8, 16, 32, 64, 128],
        num_bases=num_bases,
        norm_cfg=norm_cfg,
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100
    ),
)
