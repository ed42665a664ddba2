# The float twin of binary.py, to see what binarisation costs.
_base_ = [
    'data.py',
    'mmgroupnet::_base_/models/fcos_r18_half.py',
    'mmgroupnet::_base_/schedules/adamw_cosine.py',
    'mmgroupnet::_base_/default_runtime.py',
]

max_epochs = 9

# Everything below follows from it.
model = dict(bbox_head=dict(num_classes=_base_.num_classes))
train_cfg = dict(max_epochs=max_epochs)
