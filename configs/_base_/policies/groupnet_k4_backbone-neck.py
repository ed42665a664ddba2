# Backbone and neck binary, K = 4; heads stay in float.
_base_ = 'groupnet_k4_backbone.py'

policy = [*_base_.policy, *_base_.neck_rules]
