# mmseg's defaults, and settings for all our runs. Runs count epochs, because a run resumes at the start of an epoch.
_base_ = 'mmseg::_base_/default_runtime.py'

# Guards against lost work. Remove those that you do not want: add_guards = False keeps the tools from adding them
# again.
add_guards = False
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=True),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        backend_args=dict(backend='mmgroupnet.atomic'),  # written whole or not at all
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    checkpoint_match=dict(type='mmgroupnet.CheckpointMatchHook'),  # reports what is loaded from a checkpoint
    invalid_loss=dict(type='mmgroupnet.InvalidLossHook'),  # stops if a loss is NaN or infinite
    label_range=dict(type='mmgroupnet.LabelRangeHook'),  # stops at a mask with ids that are not classes
    epoch_seed=dict(type='mmgroupnet.EpochSeedHook'),  # a resumed run gives the results of an uninterrupted one
    plain_checkpoint=dict(type='mmgroupnet.PlainCheckpointHook'),  # every program can read the checkpoints
)
log_processor = dict(by_epoch=True)
# Logs the share of +1 and the dead channels of binary layers, once per epoch.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]

# With a fixed seed, a resumed training gives the results of an uninterrupted one.
randomness = dict(seed=0)
