"""Latent weights that binary layers start from: those of a float layer, of which no two bases are alike.

Bases with equal latent weights get equal gradients, and stay equal for ever.
"""

import torch
from torch import Tensor, nn

# A base that adds less than this part of what the first one adds has only rounding errors left to fit.
_NEGLIGIBLE = 1e-5
# Latent weights in the place of zeros. A scale of exactly zero gets no gradient; this one does, and no output shows it.
_TINY = 1e-7


def fit_bases(weight: Tensor, drawn: Tensor, quantizer: nn.Module) -> Tensor:
    """Latent weights of K bases whose mean, once they are binarised, is close to given weights.

    Args:
        weight: ``(C_out, C_in/groups, kh, kw)``.
        drawn: Latent weights of K bases as they are drawn without a float layer, ``(K*C_out, C_in/groups, kh, kw)``:
            bases differ by these where the weights do not tell them apart.
        quantizer: The quantizer of the weights, to whose scale they are fitted.

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
    r"""Bases whose scale follows the weights, such as :math:`\operatorname{mean} |w|`.

    Each is fitted to what the ones before it leave, :math:`R_1 = W`, :math:`R_{i+1} = R_i - q(K R_i) / K`; it is
    :math:`K R_i`, so that the *mean* of the bases is their sum. Where nothing is left, as of weights that are all zero,
    bases are the drawn ones, in pairs of opposite signs, whose sum is zero; one without a partner stays as it is.

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
    r"""Bases whose scale :math:`\alpha` does not follow the weights: it is 1, or learned.

    Base i is :math:`W - t_i` with thresholds :math:`t_i` evenly spread over :math:`(-\alpha, \alpha)`, so that the mean
    of the bases is W rounded to the nearest of K + 1 levels. Where :math:`\alpha` is more than twice the mean of
    :math:`|W|`, the levels are too coarse for the weights. The thresholds are then spread over twice that mean, and the
    mean of the bases follows W up to a factor, which the norm behind the layer takes.

    Every weight has its thresholds in an order of its own: bases that each have one threshold would differ in their
    mean, and a quantizer that subtracts the mean would make them equal.
    """
    num_bases = len(drawn)
    scale = _quantized(weight.expand_as(drawn), quantizer).abs()
    reach = scale.clamp(max=2 * (weight if weight.any() else drawn).abs().mean())
    thresholds = (2 * torch.arange(num_bases, device=weight.device) + 1 - num_bases) / num_bases
    order = torch.rand_like(drawn).argsort(dim=0)
    return weight - thresholds.to(weight)[order] * reach


def branch_weight(weight: Tensor, is_first: bool) -> Tensor:
    """Latent weights of a layer of one base, alone or in a branch.

    The first branch has the float weights, the others have them with noise of the same size. Zeros become tiny weights,
    since a scale of zero has no gradient.

    Args:
        weight: ``(C_out, C_in/groups, kh, kw)``.
        is_first: Whether the layer stands alone, or in the first branch.
    """
    size = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    if is_first:
        return weight.where(size > 0, _TINY)
    return weight + torch.randn_like(weight) * size.clamp(min=_TINY)
