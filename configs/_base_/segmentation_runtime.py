# mmseg's defaults and what every run of ours wants besides; epochs, since a resumed run starts at one.
_base_ = 'mmseg::_base_/default_runtime.py'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=True),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
# Logs once an epoch whether the binary layers are alive.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]

# A fixed seed makes a resumed training repeat an uninterrupted one.
randomness = dict(seed=0)
