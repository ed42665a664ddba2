# Group-Net** ResNet-20, K = 3, binary from the first step: with weights and soft labels of a float ResNet-20.
_base_ = 'groupnet_r20_k3_from-float_cifar10.py'

# The same float network once more, as the teacher.
float_checkpoint = 'data/pretrained_cifar_resnet/resnet20-12fca82f.th'
teacher = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgroupnet.CIFARResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
model = dict(head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', use_soft=True)))
custom_hooks = [
    dict(type='mmgroupnet.BinaryStatisticsHook'),
    dict(type='mmgroupnet.DistillationHook', teacher=teacher, checkpoint=float_checkpoint, weight=0.9, temperature=4.0),
]

optim_wrapper = dict(optimizer=dict(lr=1e-2))
train_cfg = dict(max_epochs=12, val_interval=4)
