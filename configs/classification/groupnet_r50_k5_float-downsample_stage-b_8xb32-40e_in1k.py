# Group-Net** ResNet-50 (full-precision 1x1 convs in the shortcuts), K = 5, second of two stages.
_base_ = 'groupnet_r50_k5_stage-b_8xb32-40e_in1k.py'

model = dict(backbone=dict(binary_downsample=False))

load_from = 'work_dirs/groupnet_r50_k5_float-downsample_stage-a_8xb32-40e_in1k/epoch_40.pth'
