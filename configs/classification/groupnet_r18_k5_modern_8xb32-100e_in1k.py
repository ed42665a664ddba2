# Group-Net** ResNet-18, K = 5, with methods of later binary networks: one stage from a float ResNet, soft labels of a
# float teacher, a scale per output channel, learned thresholds, average pooling in shortcuts, cosine decay.
_base_ = [
    '../_base_/models/groupnet_r18.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_adam_cosine_100e.py',
    '../_base_/classification_runtime.py',
]

# A file, a URL, or a torchvision model.
float_checkpoint = 'torchvision://resnet18'
teacher_checkpoint = 'torchvision://resnet34'
teacher = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=34, num_stages=4, out_indices=(3,), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
)

model = dict(
    backbone=dict(
        binary_downsample=False,
        avg_down=True,
        binary_cfg=dict(
            activation=dict(type='mmgroupnet.ShiftedSign'), weight=dict(type='mmgroupnet.ChannelScaleWeight')
        ),
        init_cfg=dict(type='mmgroupnet.FromFloatResNet', checkpoint=float_checkpoint),
    ),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000)),
)
custom_hooks = [
    dict(type='mmgroupnet.BinaryStatisticsHook'),
    dict(type='mmgroupnet.DistillationHook', teacher=teacher, checkpoint=teacher_checkpoint),
]
