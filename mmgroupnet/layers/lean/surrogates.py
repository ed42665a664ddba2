"""Surrogate gradients in the form that backends take: formulas for the shipped ones."""

from torch import nn

from mmgroupnet.ops.passes import Formula, KnownSurrogate, Surrogate
from mmgroupnet.quantizers import ClippedIdentitySign, ErrorDecaySign, PolynomialSign, SwishSign


def surrogate_of(activation: nn.Module) -> Surrogate | None:
    """The surrogate gradient of an activation quantizer; None for that of ``PolynomialSign``.

    A formula is used only if neither the class nor the instance overrides the surrogate gradient.
    """
    function = activation.surrogate_gradient
    defined = getattr(function, '__func__', function)  # for a method, the function of its class
    if defined is PolynomialSign.surrogate_gradient:
        return None
    if defined is ClippedIdentitySign.surrogate_gradient:
        return KnownSurrogate(Formula.CLIPPED_IDENTITY, function)
    if defined is SwishSign.surrogate_gradient:
        return KnownSurrogate(Formula.SWISH, function, activation.beta)
    if defined is ErrorDecaySign.surrogate_gradient:
        return KnownSurrogate(Formula.TANH, function, activation.sharpness)
    return function
