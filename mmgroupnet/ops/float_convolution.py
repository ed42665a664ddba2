"""Binary convolutions in torch, with floats: they simulate networks and are the reference for the kernels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.precision import wide

SumsOverPadding = Callable[[UnitGeometry, int, Tensor, tuple[int, int]], Tensor]


def signs_of(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """-1 or +1, by default in the dtype of ``x``; zeros of both signs are +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(dtype or x.dtype)


def needs_contiguous(geometry: UnitGeometry, x: Tensor) -> bool:
    """Whether a convolution must not use channels_last: for strided 1x1 weights of few channels oneDNN (3.12) then
    writes beyond its scratch memory, https://github.com/uxlfoundation/oneDNN/issues/6035."""
    return geometry.is_strided_pointwise and x.device.type == 'cpu'


def convolve_signs(geometry: UnitGeometry, signs: Tensor, weight: Tensor) -> Tensor:
    """Pads signs and convolves them with weights, branch by branch.

    On the CPU one convolution per branch trains faster than one with K times the groups, and branches may differ in
    dilation.

    Args:
        geometry: The unit; if it merges bases, the weights are merged, too.
        signs: ``(N, B * C_in, H, W)`` of B branches; with B = 1, all branches read the same map.
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
        if needs_contiguous(g, x):
            x = x.contiguous()
        if g.padding_value and (height or width):
            x = F.pad(x, (width, width, height, height), value=float(g.padding_value))
            height = width = 0
        outs.append(F.conv2d(x, weights[at], None, g.stride, (height, width), g.dilations[at], g.groups))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def sums_over_padding(geometry: UnitGeometry, base: int, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """For each tap, the sum of the output's gradient over the pixels where the tap lies in the padding.

    Args:
        geometry: The unit.
        base: The base that convolves.
        gradient: Gradient of the output, ``(N, C_out, H', W')``.
        size: Height and width of the input.

    Returns: ``(C_out, 1, kh, kw)``, float32 or better.
    """
    outside, borders = [], []
    for kernel, stride, pad, given, out in zip(
        geometry.kernel_size, geometry.stride, geometry.pad_of(base), size, gradient.shape[2:], strict=True
    ):
        reach = geometry.dilations[base] * (kernel - 1)  # from the first tap to the last one
        first, last = -(-pad // stride), (given - 1 + pad - reach) // stride + 1
        borders.append((min(first, out), min(max(last, first), out)))  # all taps lie inside between these
        at = torch.arange(out, device=gradient.device) * stride - pad
        at = at + geometry.dilations[base] * torch.arange(kernel, device=gradient.device).view(-1, 1)
        outside.append((at < 0) | (at >= given))
    (top, bottom), (left, right) = borders
    # Only the border is read.
    summed = gradient.new_zeros(gradient.shape[1:], dtype=wide(gradient.dtype))
    for part in (
        (slice(None, top), slice(None)),
        (slice(bottom, None), slice(None)),
        (slice(top, bottom), slice(None, left)),
        (slice(top, bottom), slice(right, None)),
    ):
        summed[(slice(None), *part)] = gradient[(slice(None), slice(None), *part)].sum(0, dtype=summed.dtype)
    rows, columns = outside
    pixels = rows[:, None, :, None] | columns[None, :, None, :]
    return torch.einsum('chw,ijhw->cij', summed, pixels.to(summed.dtype)).unsqueeze(1)


def convolution_gradients(
    geometry: UnitGeometry,
    base: int,
    gradient: Tensor,
    signs: Tensor,
    weight: Tensor,
    needs_signs: bool,
    needs_weight: bool,
    sums_over_padding: SumsOverPadding = sums_over_padding,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the convolution of a base by its input and its weight; that of the weight is float32 or better.

    A convolution with padding v equals one with zero padding plus v times the weights of the taps in the padding. So no
    padded copy of a large map is made.

    Args:
        geometry: The unit.
        base: The base that convolves.
        gradient: Gradient of the output, ``(N, C_out, H', W')``.
        signs: The input, ``(N, C_in, H, W)``.
        weight: ``(C_out, C_in/groups, kh, kw)``.
        needs_signs, needs_weight: Which gradients are requested.
        sums_over_padding: Replacement for the function of this name. Default: that function.
    """
    g, value = geometry, geometry.padding_value
    padding, rate = g.pad_of(base), g.dilations[base]
    pixels = gradient.shape[0] * gradient.shape[2] * gradient.shape[3]
    if pixels == 0:
        return torch.zeros_like(signs), torch.zeros_like(weight)
    # With fewer pixels than channels, channels_last takes up to three times as long on the CPU.
    is_small = gradient.device.type == 'cpu' and pixels < signs.shape[1] and g.groups == 1
    if is_small or needs_contiguous(g, gradient):
        gradient, signs = gradient.contiguous(), signs.contiguous()
    of_signs, found, _ = torch.ops.aten.convolution_backward(
        gradient,
        signs,
        weight,
        None,
        g.stride,
        padding,
        (rate, rate),
        False,
        (0, 0),
        g.groups,
        (needs_signs, needs_weight, False),
    )
    of_weight = None
    if needs_weight:
        of_weight = found.to(wide(found.dtype))
        if value and any(padding):
            of_weight.add_(sums_over_padding(g, base, gradient, (signs.shape[2], signs.shape[3])), alpha=value)
    return of_signs, of_weight
