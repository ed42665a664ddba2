# Group-Net** ResNet-20, K = 3, binary from the first step: with learned thresholds, and with weights and soft labels of
# a float ResNet-20.
_base_ = 'groupnet_r20_k3_from-float_cifar10.py'

_base_.model.backbone.binary_cfg.activation = dict(type='mmgroupnet.ShiftedSign')
# The float network of the start is also the teacher.
teacher = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgroupnet.CIFARResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
model = dict(head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', use_soft=True)))

# Crops of 24x24 have little more than half of an image's pixels, so a step takes little more than half the time. The
# last epochs, with a low learning rate, train on whole images, as in the test.
flip_and_pack = [
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_pipeline = [dict(type='RandomCrop', crop_size=24), *flip_and_pack]
whole_image_pipeline = [dict(type='RandomCrop', crop_size=32, padding=2), *flip_and_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

custom_hooks = [
    dict(type='mmgroupnet.BinaryStatisticsHook'),
    dict(
        type='mmgroupnet.DistillationHook',
        teacher=teacher,
        checkpoint=_base_.float_checkpoint,
        weight=0.9,
        temperature=4.0,
    ),
    dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=26, train_pipeline=whole_image_pipeline)]),
]

optim_wrapper = dict(optimizer=dict(lr=1e-2))
train_cfg = dict(max_epochs=34, val_interval=17)
