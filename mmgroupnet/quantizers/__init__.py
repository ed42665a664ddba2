"""Quantizers: sign activations with their surrogate gradients, and binarisation of weights with their scales."""

from mmgroupnet.quantizers.activations import (
    ClippedIdentitySign,
    PolynomialSign,
    ShiftedSign,
    SignActivation,
    Tanh,
    binary_sign,
    build_activation,
    is_plain_sign,
)
from mmgroupnet.quantizers.weights import ChannelScaleWeight, RealWeight, SignWeight, TensorScaleWeight, UnscaledWeight

__all__ = [
    'SignActivation',
    'PolynomialSign',
    'ClippedIdentitySign',
    'ShiftedSign',
    'Tanh',
    'binary_sign',
    'build_activation',
    'is_plain_sign',
    'SignWeight',
    'TensorScaleWeight',
    'ChannelScaleWeight',
    'UnscaledWeight',
    'RealWeight',
]
