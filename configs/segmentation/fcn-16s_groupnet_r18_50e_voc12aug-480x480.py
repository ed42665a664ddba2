# FCN-16s on VOC 2012: Group-Net ResNet-18.
_base_ = './fcn-32s_groupnet_r18_50e_voc12aug-480x480.py'

model = dict(decode_head=dict(in_channels=[256, 512], in_index=[2, 3]))
