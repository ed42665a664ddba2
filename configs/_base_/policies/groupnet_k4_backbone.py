# Only the backbone binary, K = 4; neck and heads stay in float.
_base_ = 'groupnet_k4.py'

policy = [
    dict(become='keep', names=_base_.first_layers),
    dict(become='keep', types=_base_.channel_gates, optional=True),
    dict(
        become='groupwise',
        types=_base_.residual_blocks,
        names='backbone',
        num_bases=_base_.num_bases,
        binary_cfg=_base_.binary_cfg,
        skip=True,
        optional=True,
    ),
    dict(
        become='layerwise',
        names='backbone',
        num_bases=_base_.num_bases,
        binary_cfg=_base_.binary_cfg,
        optional=True,
    ),
]
