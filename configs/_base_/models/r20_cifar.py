# Float twin of groupnet_r20_cifar.py: the ResNet-20 of the ResNet paper.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgroupnet.CIFARResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
