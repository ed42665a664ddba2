"""Binary convolutions and the functions that know how K branches are folded into the channels."""

from mmgroupnet.layers.binary_conv import (
    BinaryConv2d,
    LayerwiseBinaryConv2d,
    layerwise_conv_cfg,
    raise_packed,
    refuse_options,
)
from mmgroupnet.layers.branches import (
    InPlaceMerge,
    MeanMerge,
    Merge,
    RealValuedSkip,
    ScaledMerge,
    SoftGate,
    broadcast,
    build_merge,
    share,
    soft_connect,
    split,
)
from mmgroupnet.layers.lean_chain import Chain, ChainUnit, run_chain, supports_chain

__all__ = [
    'BinaryConv2d',
    'LayerwiseBinaryConv2d',
    'Merge',
    'MeanMerge',
    'InPlaceMerge',
    'ScaledMerge',
    'build_merge',
    'raise_packed',
    'layerwise_conv_cfg',
    'refuse_options',
    'RealValuedSkip',
    'SoftGate',
    'broadcast',
    'Chain',
    'ChainUnit',
    'run_chain',
    'supports_chain',
    'share',
    'soft_connect',
    'split',
]
