# mmseg's defaults and what every run of ours wants besides; epochs, since a resumed run starts at one.
_base_ = 'mmseg::_base_/default_runtime.py'

# Guards against lost work, written out: take out what you do not want. The tools add those that are missing to every
# config that does not say add_guards = False.
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
    checkpoint_match=dict(type='mmgroupnet.CheckpointMatchHook'),  # what is loaded of a checkpoint, or why it is not
    invalid_loss=dict(type='mmgroupnet.InvalidLossHook'),  # stops where a loss is NaN or infinite
    label_range=dict(type='mmgroupnet.LabelRangeHook'),  # stops at a mask with ids that are no classes
    epoch_seed=dict(type='mmgroupnet.EpochSeedHook'),  # a resumed run repeats an uninterrupted one
    plain_checkpoint=dict(type='mmgroupnet.PlainCheckpointHook'),  # every program reads its checkpoints
)
log_processor = dict(by_epoch=True)
# Logs once an epoch whether the binary layers are alive.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]

# A fixed seed makes a resumed training repeat an uninterrupted one.
randomness = dict(seed=0)
