# FCN-32s on CamVid: Group-Net ResNet-18 of half width with BPAC; only the rates differ from the config without BPAC.
_base_ = './fcn-32s_groupnet_r18_camvid-240x180.py'

model = dict(backbone=dict(dilations=(1, 1, 'bpac', 'bpac')))
