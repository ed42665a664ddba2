# A small FCN-32s: Group-Net ResNet-18 of half width at output stride 8.
num_bases = 4

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(180, 240),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        base_channels=32,
        num_bases=num_bases,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        binary_cfg=dict(weight=dict(type='mmgroupnet.ChannelScaleWeight')),
    ),
    decode_head=dict(type='mmgroupnet.FCNScoreHead', in_channels=256, in_index=3, num_classes=11),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
