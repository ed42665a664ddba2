"""The packed units in plain torch, used if the kernels were not compiled, and as the reference in the kernels'
tests."""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.float_convolution import convolve_signs, signs_of
from mmgroupnet.ops.geometry import Connection, UnitGeometry
from mmgroupnet.ops.packing import unpack_weight


def channelwise(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``scale * x + shift`` on ``(N, channels, H, W)``; either may be None. Parameters of one branch apply to all."""
    given = shift if scale is None else scale
    if given is None:
        return x
    repeats = x.shape[1] // len(given)
    if scale is not None:
        x = x * scale.repeat(repeats).view(-1, 1, 1)
    return x if shift is None else x + shift.repeat(repeats).view(-1, 1, 1)


def convolve(geometry: UnitGeometry, s: Tensor, bits: Tensor) -> Tensor:
    """Convolves signs ``(N, B * C_in, H, W)`` of B branches with packed weights. Returns exact integers, ``(N, K *
    C_out, H', W')``, as floats, unmerged."""
    weight = unpack_weight(bits, geometry.in_channels // geometry.groups, geometry.kernel_size)
    return convolve_signs(replace(geometry, merges=False), s, weight.to(s.dtype))


def run_unit(geometry: UnitGeometry, x: Tensor, parameters: list[Tensor | None], shortcut: Tensor | None) -> Tensor:
    """Runs one unit on ``(N, B * C_in, H, W)``; parameters are ``bits, scale, bias, norm_scale, norm_shift,
    sign_scale, sign_shift``."""
    g = geometry
    bits, scale, bias, norm_scale, norm_shift, sign_scale, sign_shift = parameters
    assert bits is not None  # the only required parameter of a unit
    has_sign_parameters = sign_scale is not None or sign_shift is not None
    s = x
    if has_sign_parameters and x.shape[1] == g.in_channels and not g.shares_weights and not g.merges:
        s = x.repeat(1, g.num_bases, 1, 1)  # Every branch has its own threshold.
    out = channelwise(convolve(g, signs_of(channelwise(s, sign_scale, sign_shift)), bits), scale, None)
    if g.merges:
        out = out.unflatten(1, (g.num_bases, -1)).sum(dim=1)
    out = channelwise(out, None, bias)
    out = channelwise(out.relu() if g.relu else out, norm_scale, norm_shift)
    residual = g.residual.of(x, shortcut)
    if residual is None:
        return out
    return out + residual.repeat(1, out.shape[1] // residual.shape[1], 1, 1)


def connect(x: Tensor, num_bases: int, merge_scales: Tensor | None, gate: Tensor | None) -> Tensor:
    """Merges K branches, and gates them if there is a gate."""
    branches = x.unflatten(1, (num_bases, -1))
    if merge_scales is None:
        merged = branches.mean(dim=1, keepdim=True)
    else:
        merged = (branches * merge_scales.view(-1, 1, 1, 1)).sum(dim=1, keepdim=True)
    if gate is not None:
        merged = merged + gate.view(-1, 1, 1, 1) * (branches - merged)
    return merged.flatten(1, 2)


def max_pool(x: Tensor, window: Sequence[int], scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Max pooling with the scale and shift of a batch norm, see :func:`mmgroupnet.ops.max_pool`."""
    size, stride, padding = (tuple(window[i : i + 2]) for i in (0, 2, 4))
    return channelwise(F.max_pool2d(x, size, stride, padding), scale, shift)


def run_block(
    x: Tensor,
    connection: Connection,
    num_bases: int,
    merge_scales: Tensor | None,
    gate: Tensor | None,
    units: list[tuple[UnitGeometry, list[Tensor | None]]],
    shortcut: tuple[UnitGeometry, list[Tensor | None]] | None,
    shortcut_map: Tensor | None,
) -> Tensor:
    """Runs a block, see :func:`mmgroupnet.ops.run_block`."""
    if connection in (Connection.MERGED, Connection.GATED):
        x = connect(x, num_bases, merge_scales, gate)
    if shortcut_map is None:
        shortcut_map = x if shortcut is None else run_unit(shortcut[0], x, shortcut[1], None)
    for geometry, parameters in units:
        x = run_unit(geometry, x, parameters, shortcut_map)
    return x
