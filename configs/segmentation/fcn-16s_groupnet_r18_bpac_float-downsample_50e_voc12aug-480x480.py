# FCN-16s on VOC 2012: Group-Net** ResNet-18 with BPAC, binary parallel atrous convolution.
_base_ = './fcn-16s_groupnet_r18_bpac_50e_voc12aug-480x480.py'

model = dict(backbone=dict(binary_downsample=False))
