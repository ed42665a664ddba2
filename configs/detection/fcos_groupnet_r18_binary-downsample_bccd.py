# As fcos_groupnet_r18_bccd.py, with binary shortcuts: stem, laterals and predictions are full precision.
_base_ = 'fcos_groupnet_r18_bccd.py'

model = dict(backbone=dict(binary_downsample=True))
