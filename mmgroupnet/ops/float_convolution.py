"""Binary convolutions as torch computes them, in floats: how networks are simulated, and the reference of the
kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.precision import wide


def signs_of(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """-1 or +1, by default in the dtype of ``x``; zeros of both signs are +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(dtype or x.dtype)


def _needs_contiguous(geometry: UnitGeometry, x: Tensor) -> bool:
    """Whether a convolution has to stay away from channels_last: for strided 1x1 weights of few channels oneDNN (3.12)
    then writes beyond its scratch memory, https://github.com/uxlfoundation/oneDNN/issues/6035."""
    return geometry.is_strided_pointwise and x.device.type == 'cpu'


def convolve_signs(geometry: UnitGeometry, signs: Tensor, weight: Tensor) -> Tensor:
    """Pads signs and convolves them with weights, branch by branch.

    On the CPU a convolution per branch trains faster than one with K times the groups, and branches may differ in
    dilation.

    Args:
        geometry: The unit; of merged bases the weights are merged, too.
        signs: ``(N, B * C_in, H, W)`` of B branches; one branch serves all.
        weight: ``(rows, C_in/groups, kh, kw)``, signs or signs times their scales.

    Returns: ``(N, B' * C_out, H', W')``.
    """
    g = geometry
    given = signs.shape[1] // g.in_channels
    branches = g.branches(given)
    # By chunk: the backward pass of a slice would fill a gradient of full size.
    inputs = signs.chunk(given, dim=1)
    weights = weight.chunk(1 if g.merges or g.shares_weights else branches)
    outs = []
    for k in range(branches):
        at = 0 if g.shares_weights else k
        height, width = g.pad_of(at)
        x = inputs[k if given > 1 else 0]
        if _needs_contiguous(g, x):
            x = x.contiguous()
        if g.padding_value and (height or width):
            x = F.pad(x, (width, width, height, height), value=float(g.padding_value))
            height = width = 0
        outs.append(F.conv2d(x, weights[at], None, g.stride, (height, width), g.dilations[at], g.groups))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _sums_over_padding(geometry: UnitGeometry, base: int, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Sums of an output's gradient over the pixels at which a tap lies in the padding of an input of this size,
    ``(C_out, kh, kw)``."""
    taps = zip(geometry.kernel_size, geometry.stride, geometry.pad_of(base), size, gradient.shape[2:], strict=True)
    outside = []
    for kernel, stride, pad, given, out in taps:
        first = torch.arange(out, device=gradient.device) * stride - pad
        at = first + geometry.dilations[base] * torch.arange(kernel, device=gradient.device).view(-1, 1)
        outside.append((at < 0) | (at >= given))
    rows, columns = outside
    pixels = rows[:, None, :, None] | columns[None, :, None, :]
    summed = gradient.sum(0, dtype=wide(gradient.dtype))
    return torch.einsum('chw,ijhw->cij', summed, pixels.to(summed.dtype))


def convolution_gradients(
    geometry: UnitGeometry,
    base: int,
    gradient: Tensor,
    signs: Tensor,
    weight: Tensor,
    needs_signs: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the convolution of a base in its input and in its weight, float32 or better.

    A convolution of signs that are padded with v is one that is padded with zeros, plus v times the weights of the taps
    that lie in the padding: no padded copy is made.

    Args:
        geometry: The unit.
        base: Which of its bases convolves.
        gradient: Of the output, ``(N, C_out, H', W')``.
        signs: The input, ``(N, C_in, H, W)``.
        weight: ``(C_out, C_in/groups, kh, kw)``.
        needs_signs, needs_weight: Which gradients are asked for.
    """
    of_signs, of_weight = _zero_padded_gradients(geometry, base, gradient, signs, weight, needs_signs, needs_weight)
    if not needs_weight:
        return of_signs, None
    of_weight = of_weight.to(wide(of_weight.dtype))
    if geometry.padding_value and any(geometry.pad_of(base)):
        of_padding = _sums_over_padding(geometry, base, gradient, signs.shape[2:]).unsqueeze(1)
        of_weight = of_weight.add(of_padding, alpha=geometry.padding_value)
    return of_signs, of_weight


def _zero_padded_gradients(
    geometry: UnitGeometry,
    base: int,
    gradient: Tensor,
    signs: Tensor,
    weight: Tensor,
    needs_signs: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`convolution_gradients`, of a convolution that is padded with zeros, in the dtype of the gradient."""
    kernel_size, stride, groups = geometry.kernel_size, geometry.stride, geometry.groups
    padding, rate = geometry.pad_of(base), geometry.dilations[base]
    pixels = gradient.shape[0] * gradient.shape[2] * gradient.shape[3]
    if pixels == 0:
        return torch.zeros_like(signs), torch.zeros_like(weight)
    of_weight = None
    is_small = gradient.device.type == 'cpu' and pixels < signs.shape[1] and groups == 1
    if is_small and needs_weight and kernel_size != (1, 1):
        # Where there are fewer pixels than channels, a matrix product is up to three times faster than oneDNN.
        columns = F.unfold(signs, kernel_size, rate, padding, stride)
        columns = columns.transpose(0, 1).flatten(1)
        of_weight = (gradient.transpose(0, 1).flatten(1) @ columns.t()).view_as(weight)
        needs_weight = False
    if is_small or _needs_contiguous(geometry, gradient):  # faster so, too, where there are few pixels
        gradient, signs = gradient.contiguous(), signs.contiguous()
    of_signs, found, _ = torch.ops.aten.convolution_backward(
        gradient,
        signs,
        weight,
        None,
        stride,
        padding,
        (rate, rate),
        False,
        (0, 0),
        groups,
        (needs_signs, needs_weight, False),
    )
    return of_signs, found if of_weight is None else of_weight
