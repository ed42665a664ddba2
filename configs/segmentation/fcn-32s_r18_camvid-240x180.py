# Float twin of fcn-32s_groupnet_r18_camvid-240x180.py: mmseg's own ResNet-18, same head, data and schedule.
_base_ = [
    '../_base_/models/fcn-32s_r18_half.py',
    '../_base_/datasets/camvid_240x180.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/segmentation_runtime.py',
]

# A run takes at most eight minutes on two cores.
train_cfg = dict(max_epochs=4, val_interval=4)

# Square roots of median frequency weights, by the pixels of the training masks: poles, signs, pedestrians and cyclists
# are about 1 % each.
class_weight = [0.52, 0.44, 2.14, 0.38, 1.0, 0.68, 1.96, 2.0, 0.87, 2.65, 3.92]
# Without a reduction of its own the loss is averaged by mmengine: mmseg's average fails where masks hold 255.
loss_decode = dict(type='CrossEntropyLoss', class_weight=class_weight, reduction='none')
model = dict(decode_head=dict(loss_decode=loss_decode))
