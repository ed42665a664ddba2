# The demo: a small FCOS, all binary, on the embedded digits.
_base_ = [
    '../_base_/models/fcos_groupnet_r18_half.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw_9e.py',
    '../_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=10))
