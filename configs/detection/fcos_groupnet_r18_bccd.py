# All binary (backbone, neck, head), K = 4, Group-Net** with average pooling, half width, from scratch.
_base_ = [
    '../_base_/models/fcos_groupnet_r18_half.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=3))
