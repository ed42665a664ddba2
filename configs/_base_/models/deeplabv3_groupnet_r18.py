# DeepLabV3, all binary: Group-Net ResNet-18 with BPAC at output stride 8, binary ASPP head and auxiliary head. Stem and
# classifiers are full precision.
num_bases = 5
norm_cfg = dict(type='SyncBN')

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 1024),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        num_bases=num_bases,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 'bpac', 'bpac'),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='mmgroupnet.BinaryASPPHead',
        in_channels=512,
        in_index=3,
        channels=128,
        dilations=(1, 12, 24, 36),
        num_classes=19,
        num_bases=num_bases,
        norm_cfg=norm_cfg,
    ),
    auxiliary_head=dict(
        type='mmgroupnet.BinaryFCNHead',
        in_channels=256,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        num_classes=19,
        num_bases=num_bases,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
