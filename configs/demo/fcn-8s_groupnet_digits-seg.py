# The segmentation demo: a small FCN-8s with a Group-Net** ResNet-18 at output stride 16 on the embedded digits.
_base_ = [
    '../_base_/models/fcn-32s_groupnet_r18_half.py',
    '../_base_/datasets/digits_segmentation.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/segmentation_runtime.py',
]

num_bases = 3
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        num_bases=num_bases,
        strides=(1, 2, 2, 1),
        # One small rate per branch: the last map has 8x8 pixels.
        dilations=(1, 1, 1, [1, 2, 3]),
        binary_downsample=False,
        avg_down=True,
    ),
    decode_head=dict(in_channels=[64, 128, 256], in_index=[1, 2, 3], num_classes=11),
)

train_cfg = dict(max_epochs=5, val_interval=1)
