# The segmentation demo: a small DeepLabV3, all binary, on the embedded digits.
_base_ = [
    '../_base_/models/deeplabv3_groupnet_r18.py',
    '../_base_/datasets/digits_segmentation.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/segmentation_runtime.py',
]

num_bases = 3
norm_cfg = dict(type='BN')
binary_cfg = dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'))
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        base_channels=16,
        num_bases=num_bases,
        binary_downsample=False,
        avg_down=True,
        norm_cfg=norm_cfg,
        binary_cfg=binary_cfg,
    ),
    # Two cells of the map cover a stroke: small rates are enough.
    decode_head=dict(
        in_channels=128,
        channels=64,
        dilations=(1, 2, 4),
        num_classes=11,
        num_bases=num_bases,
        norm_cfg=norm_cfg,
        binary_cfg=binary_cfg,
    ),
    auxiliary_head=None,
)

train_cfg = dict(max_epochs=5, val_interval=1)
