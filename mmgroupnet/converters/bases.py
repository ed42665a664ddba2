"""Computes the initial latent weights of binary layers from those of a float layer; no two bases start equal.

Bases with equal latent weights get equal gradients, and stay equal for ever.
"""

import torch
from torch import Tensor, nn

# If a base adds less than this fraction of the first one, only rounding errors are left to fit.
_NEGLIGIBLE = 1e-5
# Replaces latent weights of zero. A scale of exactly zero gets no gradient; this one does, but does not change outputs.
_TINY = 1e-7


def fit_bases(weight: Tensor, drawn: Tensor, quantizer: nn.Module) -> Tensor:
    """Latent weights of K bases whose binarised mean is close to given weights.

    Args:
        weight: ``(C_out, C_in/groups, kh, kw)``.
        drawn: Random latent weights of K bases, as initialised without a float layer, ``(K*C_out, C_in/groups, kh,
            kw)``; they make bases differ if the weights do not.
        quantizer: The quantizer of the weights; its scale is used for the fit.

    Returns: ``(K*C_out, C_in/groups, kh, kw)``.
    """
    drawn = drawn.view(-1, *weight.shape)
    if len(drawn) == 1:
        return weight
    follows = not torch.equal(_quantized(drawn, quantizer), _quantized(2 * drawn, quantizer))
    return (_residual_bases if follows else _dithered_bases)(weight, drawn, quantizer).flatten(0, 1)


def _quantized(bases: Tensor, quantizer: nn.Module) -> Tensor:
    return quantizer(bases.flatten(0, 1), len(bases)).view_as(bases)


def _residual_bases(weight: Tensor, drawn: Tensor, quantizer: nn.Module) -> Tensor:
    r"""Bases for a scale that follows the weights, such as :math:`\operatorname{mean} |w|`.

    Each is fitted to the residual of those before it, :math:`R_1 = W`, :math:`R_{i+1} = R_i - q(K R_i) / K`. Base i is
    :math:`K R_i`, so that the *mean* of the bases approximates W. If no residual is left, for example for zero weights,
    the bases are random, in pairs of opposite signs whose sum is zero; one without a partner is not changed.

    Source: Guo et al., Network Sketching, CVPR 2017, algorithm 1 (direct approximation), for the scale of one channel.
    """
    bases, sizes = torch.zeros_like(drawn), torch.zeros_like(drawn)
    rest = weight
    for index in range(len(bases)):
        bases[index] = len(bases) * rest
        part = _quantized(bases, quantizer)[index] / len(bases)
        sizes[index] = part.abs()
        rest = rest - part
    is_spent = sizes <= _NEGLIGIBLE * sizes[0]
    is_first = is_spent & (is_spent.cumsum(0) % 2 == 1)
    for index in range(len(bases) - 1):
        bases[index] = bases[index].where(~is_first[index], drawn[index])
        bases[index + 1] = bases[index + 1].where(~is_first[index], -drawn[index])
    return bases


def _dithered_bases(weight: Tensor, drawn: Tensor, quantizer: nn.Module) -> Tensor:
    r"""Bases for a scale :math:`\alpha` that does not follow the weights: it is 1, or learned.

    Base i is :math:`W - t_i` with thresholds :math:`t_i` evenly spread over :math:`(-\alpha, \alpha)`, so the mean of
    the bases is W rounded to the nearest of K + 1 levels. If :math:`\alpha` is more than twice the mean of :math:`|W|`,
    the levels are too coarse for the weights. The thresholds are then spread over twice that mean, and the mean of the
    bases follows W up to a factor, which the norm behind the layer absorbs.

    Every weight has its thresholds in its own order. If each base had one threshold, the bases would differ only in
    their mean, and a quantizer that subtracts the mean would make them equal.
    """
    num_bases = len(drawn)
    scale = _quantized(weight.expand_as(drawn), quantizer).abs()
    reach = scale.clamp(max=2 * (weight if weight.any() else drawn).abs().mean())
    thresholds = (2 * torch.arange(num_bases, device=weight.device) + 1 - num_bases) / num_bases
    order = torch.rand_like(drawn).argsort(dim=0)
    return weight - thresholds.to(weight)[order] * reach


def branch_weight(weight: Tensor, is_first: bool) -> Tensor:
    """Latent weights of a layer with one base, alone or in a branch.

    The first branch gets the float weights, the others the float weights plus noise of the same size. Zeros become tiny
    weights, since a scale of zero has no gradient.

    Args:
        weight: ``(C_out, C_in/groups, kh, kw)``.
        is_first: Whether the layer is alone, or in the first branch.
    """
    size = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    if is_first:
        return weight.where(size > 0, _TINY)
    return weight + torch.randn_like(weight) * size.clamp(min=_TINY)
