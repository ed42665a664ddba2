# FCN-32s on CamVid: Group-Net ResNet-18 of half width, dilation 2 and 4 on every branch.
_base_ = [
    '../_base_/models/fcn-32s_groupnet_r18_half.py',
    '../_base_/datasets/camvid_240x180.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/segmentation_runtime.py',
]

# A run takes at most eight minutes on two cores.
train_cfg = dict(max_epochs=4, val_interval=4)

# With reduction='none', mmengine averages the loss: mmseg's own average fails if masks hold 255.
loss_decode = dict(type='CrossEntropyLoss', class_weight=_base_.class_weight, reduction='none')
model = dict(decode_head=dict(loss_decode=loss_decode))
