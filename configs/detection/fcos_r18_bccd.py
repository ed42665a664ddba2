# Float twin of fcos_groupnet_r18_bccd.py: mmdet's own parts, same widths, data and schedule.
_base_ = [
    '../_base_/models/fcos_r18_half.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=3))
