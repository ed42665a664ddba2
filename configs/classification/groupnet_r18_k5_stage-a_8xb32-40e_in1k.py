# Group-Net ResNet-18, K = 5, first of two stages: tanh and real weights in place of the signs.
#   tools/dist_train.sh configs/classification/groupnet_r18_k5_stage-a_8xb32-40e_in1k.py 8
#   tools/dist_train.sh configs/classification/groupnet_r18_k5_stage-b_8xb32-40e_in1k.py 8
_base_ = [
    '../_base_/models/groupnet_r18.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_stage-a_40e.py',
    '../_base_/classification_runtime.py',
]

model = dict(backbone=dict(real_valued=True))
