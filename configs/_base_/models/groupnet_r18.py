# ResNet-18 with K = 5 bases for ImageNet; stem and last layer are full precision, everything else is binary.
num_bases = 5

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=num_bases, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
