# mmdet's defaults, and settings for all our runs.
_base_ = 'mmdet::_base_/default_runtime.py'

# Guards against lost work. Remove those that you do not want: add_guards = False keeps the tools from adding them
# again.
add_guards = False
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=2, backend_args=dict(backend='mmgroupnet.atomic')),  # written whole or not at all
    checkpoint_match=dict(type='mmgroupnet.CheckpointMatchHook'),  # reports what is loaded from a checkpoint
    invalid_loss=dict(type='mmgroupnet.InvalidLossHook'),  # stops if a loss is NaN or infinite
    epoch_seed=dict(type='mmgroupnet.EpochSeedHook'),  # a resumed run gives the results of an uninterrupted one
    plain_checkpoint=dict(type='mmgroupnet.PlainCheckpointHook'),  # every program can read the checkpoints
)
# Logs the share of +1 and the dead channels of binary layers, once per epoch.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]

# With a fixed seed, a resumed training gives the results of an uninterrupted one.
randomness = dict(seed=0)
