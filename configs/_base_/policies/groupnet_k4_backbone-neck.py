# Backbone and neck binary, K = 4; heads stay in float.
_base_ = 'groupnet_k4_backbone.py'

policy = [
    *_base_.policy,
    dict(become='keep', names=_base_.laterals, optional=True),
    dict(become='layerwise', names='neck', num_bases=_base_.num_bases, binary_cfg=_base_.binary_cfg, skip=True),
]
