# FCN-32s on CamVid's whole frames, with BPAC; the rates are the only difference to the one without.
_base_ = './fcn-32s_groupnet_r18_camvid-480x360.py'

model = dict(backbone=dict(dilations=(1, 1, 'bpac', 'bpac')))
