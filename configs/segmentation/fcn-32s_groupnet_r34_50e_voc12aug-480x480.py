# FCN-32s on VOC 2012: Group-Net ResNet-34.
_base_ = './fcn-32s_groupnet_r18_50e_voc12aug-480x480.py'

model = dict(backbone=dict(depth=34))
