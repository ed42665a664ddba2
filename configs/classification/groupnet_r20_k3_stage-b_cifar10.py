# Second stage of two: binary, from the weights of the first.
_base_ = 'groupnet_r20_k3_scratch_cifar10.py'

load_from = 'work_dirs/groupnet_r20_k3_stage-a_cifar10/epoch_25.pth'
