# First stage of two: tanh and real weights in place of the signs, under the same parameter names.
_base_ = [
    '../_base_/models/groupnet_r20_cifar.py',
    '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar10_sgd_cosine.py',
    '../_base_/classification_runtime.py',
]

model = dict(backbone=dict(real_valued=True, binary_cfg=dict(_delete_=True)))
