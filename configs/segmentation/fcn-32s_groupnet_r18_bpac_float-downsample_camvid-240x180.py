# FCN-32s on CamVid: Group-Net** ResNet-18 of half width with BPAC.
_base_ = './fcn-32s_groupnet_r18_bpac_camvid-240x180.py'

model = dict(backbone=dict(binary_downsample=False, avg_down=True))
