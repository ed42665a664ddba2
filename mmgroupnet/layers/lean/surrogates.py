"""Surrogate gradients as backends take them: the shipped ones by their formulas."""

from torch import nn

from mmgroupnet.ops.passes import Formula, KnownSurrogate, Surrogate
from mmgroupnet.quantizers import ClippedIdentitySign, ErrorDecaySign, PolynomialSign, SwishSign


def surrogate_of(activation: nn.Module) -> Surrogate | None:
    """The surrogate gradient of an activation quantizer; None for that of ``PolynomialSign``.

    A formula counts where neither the class nor the instance has a surrogate gradient of its own.
    """
    function = activation.surrogate_gradient
    defined = getattr(function, '__func__', function)  # of a method what its class defines
    if defined is PolynomialSign.surrogate_gradient:
        return None
    if defined is ClippedIdentitySign.surrogate_gradient:
        return KnownSurrogate(Formula.CLIPPED_IDENTITY, function)
    if defined is SwishSign.surrogate_gradient:
        return KnownSurrogate(Formula.SWISH, function, activation.beta)
    if defined is ErrorDecaySign.surrogate_gradient:
        return KnownSurrogate(Formula.TANH, function, activation.sharpness)
    return function
