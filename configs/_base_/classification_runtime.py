# mmpretrain's defaults and what every run of ours wants besides.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
# Logs once an epoch whether the binary layers are alive.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]

# A fixed seed makes a resumed training repeat an uninterrupted one.
randomness = dict(seed=0)
