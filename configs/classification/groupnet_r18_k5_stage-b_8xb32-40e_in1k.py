# Group-Net ResNet-18, K = 5, second of two stages: binary, from the weights of the first.
_base_ = [
    '../_base_/models/groupnet_r18.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_stage-b_40e.py',
    '../_base_/classification_runtime.py',
]

load_from = 'work_dirs/groupnet_r18_k5_stage-a_8xb32-40e_in1k/epoch_40.pth'
