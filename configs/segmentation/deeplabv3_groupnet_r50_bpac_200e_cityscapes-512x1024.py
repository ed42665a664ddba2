# DeepLabV3 on Cityscapes, all binary: Group-Net ResNet-50 with BPAC, binary ASPP head.
_base_ = './deeplabv3_groupnet_r18_bpac_200e_cityscapes-512x1024.py'

model = dict(
    backbone=dict(depth=50, with_cp=True),
    decode_head=dict(in_channels=2048, channels=512),
    auxiliary_head=dict(in_channels=1024, channels=256),
)
