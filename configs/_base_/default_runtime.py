# mmdet's defaults and what every run of ours wants besides.
_base_ = 'mmdet::_base_/default_runtime.py'

# A fixed seed makes a resumed training repeat an uninterrupted one.
randomness = dict(seed=0)
