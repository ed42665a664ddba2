"""Binary convolutions as torch computes them, in floats: how networks are simulated, and the reference of the
kernels."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry


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


def convolution_gradients(
    geometry: UnitGeometry,
    base: int,
    gradient: Tensor,
    signs: Tensor,
    weight: Tensor,
    padding_value: int,
    needs_signs: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution in its input and in its weight.

    Args:
        geometry: The unit.
        base: Which of its bases convolves.
        gradient: Of the output, ``(N, C_out, H', W')``.
        signs: The input, ``(N, C_in, H, W)``.
        weight: ``(C_out, C_in/groups, kh, kw)``.
        padding_value: What the input is padded with. Other values than 0 take a padded copy.
        needs_signs, needs_weight: Which gradients are asked for.
    """
    kernel_size, stride, groups = geometry.kernel_size, geometry.stride, geometry.groups
    padding, rate = geometry.pad_of(base), geometry.dilations[base]
    if padding_value and any(padding):
        (rows, columns), (height, width) = padding, signs.shape[2:]
        padded = F.pad(signs, (columns, columns, rows, rows), value=float(padding_value))
        unpadded = replace(geometry, padding=(0, 0))
        of_signs, of_weight = convolution_gradients(
            unpadded, base, gradient, padded, weight, 0, needs_signs, needs_weight
        )
        inside = of_signs[:, :, rows : rows + height, columns : columns + width] if needs_signs else None
        return inside, of_weight
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
