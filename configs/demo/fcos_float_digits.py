# Float twin of fcos_groupnet_digits.py: mmdet's own parts, same widths, data and schedule.
_base_ = [
    '../_base_/models/fcos_r18_half.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = dict(
    neck=dict(num_outs=3),
    bbox_head=dict(num_classes=10, strides=[8, 16, 32], regress_ranges=((-1, 32), (32, 64), (64, 1e8))),
)

train_cfg = dict(max_epochs=10, val_interval=1)
