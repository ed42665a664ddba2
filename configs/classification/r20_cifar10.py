# Float twin: the ResNet-20 of the ResNet paper.
_base_ = [
    '../_base_/models/r20_cifar.py',
    '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar10_sgd_cosine.py',
    '../_base_/classification_runtime.py',
]
