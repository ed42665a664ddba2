"""Quantizers: sign activations with their surrogate gradients, and binarisation of weights with their scales."""

from mmgroupnet.quantizers.activations import (
    ClippedIdentitySign,
    ErrorDecaySign,
    PolynomialSign,
    ShiftedSign,
    SignActivation,
    SwishSign,
    Tanh,
    binary_sign,
    build_quantizer,
    is_standard_sign,
)
from mmgroupnet.quantizers.error_decay import ErrorDecay
from mmgroupnet.quantizers.weights import (
    BalancedWeight,
    BinaryWeight,
    ChannelScaleWeight,
    LearnedScaleWeight,
    MagnitudeAwareWeight,
    RealWeight,
    SignWeight,
    TensorScaleWeight,
    UnscaledWeight,
    is_standard_weight,
    unscaled,
)

__all__ = [
    'SignActivation',
    'PolynomialSign',
    'ClippedIdentitySign',
    'ShiftedSign',
    'SwishSign',
    'ErrorDecay',
    'ErrorDecaySign',
    'Tanh',
    'binary_sign',
    'build_quantizer',
    'is_standard_sign',
    'SignWeight',
    'BinaryWeight',
    'TensorScaleWeight',
    'ChannelScaleWeight',
    'UnscaledWeight',
    'LearnedScaleWeight',
    'MagnitudeAwareWeight',
    'BalancedWeight',
    'RealWeight',
    'is_standard_weight',
    'unscaled',
]
