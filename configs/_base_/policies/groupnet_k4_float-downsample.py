# Group-Net**: as groupnet_k4.py, with full-precision 1x1 convs in the shortcuts that change the shape.
_base_ = 'groupnet_k4.py'

policy = [
    dict(become='keep', names='backbone.*.downsample'),
    *_base_.policy,
]
