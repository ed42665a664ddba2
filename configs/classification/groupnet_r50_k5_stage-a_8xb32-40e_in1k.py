# Group-Net ResNet-50, K = 5, first of two stages.
_base_ = 'groupnet_r18_k5_stage-a_8xb32-40e_in1k.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=2048))
