# FCN-32s on VOC 2012: Group-Net** ResNet-50 with BPAC, binary parallel atrous convolution.
_base_ = './fcn-32s_groupnet_r50_bpac_50e_voc12aug-480x480.py'

model = dict(backbone=dict(binary_downsample=False))
