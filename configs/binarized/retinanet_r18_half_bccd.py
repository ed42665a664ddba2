# RetinaNet R18 of half width on BCCD, float, from scratch; to make it binary:
#   python tools/train.py configs/binarized/retinanet_r18_half_bccd.py --binarize configs/_base_/policies/groupnet_k4.py
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=8),
    backbone=dict(depth=18, base_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32, 64]),
    ),
)
