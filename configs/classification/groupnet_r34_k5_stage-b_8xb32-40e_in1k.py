# Group-Net ResNet-34, K = 5, second of two stages.
_base_ = 'groupnet_r18_k5_stage-b_8xb32-40e_in1k.py'

model = dict(backbone=dict(depth=34))

load_from = 'work_dirs/groupnet_r34_k5_stage-a_8xb32-40e_in1k/epoch_40.pth'
