# A small detector with binary backbone, neck and head.
_base_ = [
    'data.py',
    'mmgroupnet::_base_/models/fcos_groupnet_r18_half.py',
    'mmgroupnet::_base_/schedules/adamw_cosine.py',
    'mmgroupnet::_base_/default_runtime.py',
]

num_bases = 3  # K, the number of binary branches: with more, the model is more accurate, larger and slower
max_epochs = 9

# Everything below follows from it.
model = dict(
    backbone=dict(num_bases=num_bases),
    neck=dict(num_bases=num_bases),
    bbox_head=dict(num_bases=num_bases, num_classes=_base_.num_classes),
)
train_cfg = dict(max_epochs=max_epochs)
