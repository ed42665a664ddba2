# A small Group-Net** on the embedded digits, binary from the first step, for as many epochs as both stages together.
_base_ = [
    '../_base_/models/groupnet_r20_cifar.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/cifar10_adam_cosine.py',
    '../_base_/classification_runtime.py',
]

model = dict(backbone=dict(stage_blocks=(1, 1, 1)))

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
