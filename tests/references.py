"""Reference implementation of binary layers in plain tensor operations, against which the package is tested.

This file does not import the package.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def with_gradient_of(value: Tensor, approximation: Tensor) -> Tensor:
    """Returns ``value``, with the gradient of ``approximation``."""
    return value.detach() + (approximation - approximation.detach())


def reference_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of Bi-Real Net's piecewise polynomial."""
    clipped = x.clamp(-1, 1)
    return with_gradient_of(torch.where(x < 0, -1.0, 1.0).to(x.dtype), 2 * clipped - clipped * clipped.abs())


def reference_weight(weight: Tensor) -> Tensor:
    """Signs of one conv's weights, scaled by their mean magnitude, with the gradient of the identity."""
    return with_gradient_of(torch.where(weight < 0, -1.0, 1.0).to(weight.dtype) * weight.abs().mean(), weight)


def same_padding(kernel_size: Sequence[int], dilation: int) -> tuple[int, int]:
    """Rows and columns to pad on each side, so that an odd kernel keeps the size at stride 1."""
    height, width = kernel_size
    return (height // 2 * dilation, width // 2 * dilation)


def reference_conv(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    padding_value: float = 1,
    sign: Callable[[Tensor], Tensor] = reference_sign,
    quantize: Callable[[Tensor], Tensor] = reference_weight,
) -> Tensor:
    """One binary conv of one branch: sign, explicit border of ``padding_value``, ``F.conv2d`` without padding.

    Sums that are zero in integers are set to exactly zero: otherwise a rounding error of either sign would remain, and
    the sign decides whether a ReLU passes the gradient.
    """
    signs = sign(x)
    (height, width), (rows, columns) = x.shape[2:], padding
    padded = signs.new_full((*x.shape[:2], height + 2 * rows, width + 2 * columns), padding_value)
    padded[:, :, rows : rows + height, columns : columns + width] = signs
    options = dict(stride=stride, dilation=dilation, groups=groups)
    quantized = quantize(weight)
    out = F.conv2d(padded, quantized, **options)
    integers = F.conv2d(padded.detach(), quantized.detach().sign(), **options)
    return with_gradient_of(out.detach().masked_fill(integers == 0, 0), out)


def assert_same_gradients(out: Tensor, expected: Tensor, leaves: Sequence[Tensor], **tolerances: float) -> None:
    """Asserts equal values, and equal gradients in all leaves for one random gradient of the output."""
    torch.testing.assert_close(out, expected, **tolerances)
    upstream = torch.randn(out.shape, dtype=out.dtype)
    gradients = torch.autograd.grad(out, leaves, upstream)
    references = torch.autograd.grad(expected, leaves, upstream)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, **tolerances)
