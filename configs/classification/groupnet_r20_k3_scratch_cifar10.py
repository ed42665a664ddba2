# Group-Net** ResNet-20, K = 3, binary from the first step, from random weights.
_base_ = [
    '../_base_/models/groupnet_r20_cifar.py',
    '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar10_adam_cosine.py',
    '../_base_/classification_runtime.py',
]
