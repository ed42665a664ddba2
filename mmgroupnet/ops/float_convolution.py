"""Binary convolutions as torch computes them, in floats: how networks are simulated, and the reference of the
kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry


def is_strided_pointwise(geometry: UnitGeometry) -> bool:
    """Whether it is a strided 1x1 convolution: of channels_last maps with few channels oneDNN (3.12) computes the
    gradient of its weights beyond the end of its scratch memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return geometry.kernel_size == (1, 1) and geometry.stride != (1, 1)


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
        if is_strided_pointwise(g) and x.device.type == 'cpu':
            x = x.contiguous()
        if g.padding_value and (height or width):
            x = F.pad(x, (width, width, height, height), value=float(g.padding_value))
            height = width = 0
        outs.append(F.conv2d(x, weights[at], None, g.stride, (height, width), g.dilations[at], g.groups))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
