# Group-Net** ResNet-18 (full-precision 1x1 convs in the shortcuts), K = 5, first of two stages.
_base_ = 'groupnet_r18_k5_stage-a_8xb32-40e_in1k.py'

model = dict(backbone=dict(binary_downsample=False))
