# Only the backbone binary, K = 4; neck and heads stay in float.
_base_ = 'groupnet_k4.py'

policy = [
    dict(become='keep', names=_base_.first_layers),
    dict(become='keep', types=_base_.float_modules, optional=True),
    *_base_.backbone_rules,
]
