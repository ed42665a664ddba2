# ResNet-20 of CIFAR-10 with K = 3 bases, Group-Net**: full-precision 1x1 convs in the shortcuts.
num_bases = 3

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmgroupnet.GroupNetResNet',
        depth=20,
        num_bases=num_bases,
        stem='cifar',
        base_channels=16,
        out_indices=(2,),
        binary_downsample=False,
        avg_down=True,
        binary_cfg=dict(weight=dict(type='mmgroupnet.ChannelScaleWeight')),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
