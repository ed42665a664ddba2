# FCN-32s with a Group-Net ResNet-18 at output stride 8; stem and predictions are full precision.
num_bases = 5
norm_cfg = dict(type='SyncBN')

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(480, 480),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        num_bases=num_bases,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(type='mmgroupnet.FCNScoreHead', in_channels=512, in_index=3, num_classes=21),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
