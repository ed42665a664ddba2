"""Hooks for training: statistics of binary networks, distillation, and guards against lost work."""

from mmgroupnet.engine.hooks.binary_statistics_hook import BinaryStatisticsHook
from mmgroupnet.engine.hooks.checkpoint_match_hook import CheckpointMatchHook
from mmgroupnet.engine.hooks.distillation_hook import DistillationHook
from mmgroupnet.engine.hooks.draw_predictions_hook import DrawPredictionsHook
from mmgroupnet.engine.hooks.epoch_seed_hook import EpochSeedHook
from mmgroupnet.engine.hooks.error_decay_hook import ErrorDecayHook
from mmgroupnet.engine.hooks.invalid_loss_hook import InvalidLossHook
from mmgroupnet.engine.hooks.label_range_hook import LabelRangeHook
from mmgroupnet.engine.hooks.plain_checkpoint_hook import PlainCheckpointHook

__all__ = [
    'BinaryStatisticsHook',
    'CheckpointMatchHook',
    'DistillationHook',
    'DrawPredictionsHook',
    'EpochSeedHook',
    'ErrorDecayHook',
    'InvalidLossHook',
    'LabelRangeHook',
    'PlainCheckpointHook',
]
