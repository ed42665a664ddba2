"""Binary layers and the functions that know how K branches are folded into the channels."""

from mmgroupnet.layers.binary_conv import BinaryConv2d, LayerwiseBinaryConv2d, raise_packed
from mmgroupnet.layers.binary_linear import BinaryLinear, LayerwiseBinaryLinear
from mmgroupnet.layers.branches import RealValuedSkip, broadcast, build_branch_norm, share, split
from mmgroupnet.layers.fx import trace_as_leaf
from mmgroupnet.layers.groupwise import GroupwiseBlock, GroupwiseChain
from mmgroupnet.layers.lean import Chain, ChainUnit, can_run_chain, run_chain
from mmgroupnet.layers.lean.path import is_as_written
from mmgroupnet.layers.memory_layout import guard_foreign_code, is_guard
from mmgroupnet.layers.merges import (
    InPlaceMerge,
    MeanMerge,
    Merge,
    ScaledMerge,
    SoftGate,
    build_merge,
    soft_connect,
)

__all__ = [
    'BinaryConv2d',
    'LayerwiseBinaryConv2d',
    'BinaryLinear',
    'LayerwiseBinaryLinear',
    'GroupwiseBlock',
    'GroupwiseChain',
    'Merge',
    'MeanMerge',
    'InPlaceMerge',
    'ScaledMerge',
    'build_merge',
    'guard_foreign_code',
    'is_as_written',
    'is_guard',
    'raise_packed',
    'RealValuedSkip',
    'SoftGate',
    'broadcast',
    'build_branch_norm',
    'Chain',
    'ChainUnit',
    'can_run_chain',
    'run_chain',
    'share',
    'soft_connect',
    'split',
    'trace_as_leaf',
]
