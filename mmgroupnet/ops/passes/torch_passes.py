"""Passes of lean training in plain torch, for any device and floating dtype; see :class:`mmgroupnet.ops.passes.Passes`
for what each does."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmgroupnet.ops.float_convolution import convolve_signs
from mmgroupnet.ops.geometry import UnitGeometry

# Sums that fit 16 bits.
MAX_LENGTH = 32767
_PIXELS = (0, 2, 3)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products and sums of a dtype are computed: float32, or float64 where it is that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _channels(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector over the channels, as it broadcasts to maps of a dtype."""
    return vector.to(dtype).view(-1, 1, 1)


def _rectified(y: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    y = y.to(dtype)
    return y.clamp(min=0) if relu else y


def _signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(dtype)


class TorchPasses:
    """Passes in plain torch.

    Args:
        dtype: Of the convolutions.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.for_floats = self

    def prepare(self, x: Tensor) -> Tensor:
        return x.detach()

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        y = convolve_signs(geometry, _signs(x, self.dtype), _signs(weight, self.dtype))
        # Half precision is no larger, and not exact: what it rounded stays as it is. Convolutions by Winograd's
        # transform are next to the integers.
        is_exact = self.dtype in (torch.float32, torch.float64) and geometry.row_bits <= MAX_LENGTH
        return y.round_().to(torch.int16) if is_exact else y

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        if y.dtype == torch.int16:
            r = _rectified(y, torch.int32, relu)  # its squares are below 2**31
            return torch.stack([r.sum(_PIXELS), r.square().sum(_PIXELS)]).double()
        r = _rectified(y, wide(y.dtype), relu)
        pixels = r.numel() // r.shape[1]
        if pixels == 0:
            return r.new_zeros(2, r.shape[1], dtype=torch.float64)
        # The squares of floats would cancel where the mean is large; torch takes them around it.
        variance, mean = (value.double() for value in torch.var_mean(r, _PIXELS, correction=0))
        return torch.stack([mean, variance + mean.square()]) * pixels

    def affine(
        self, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool, dtype: torch.dtype
    ) -> Tensor:
        computed = wide(dtype)
        r = _rectified(y, computed, relu)
        out = torch.addcmul(_channels(shift, computed), r, _channels(scale, computed))
        return (out if residual is None else out.add_(residual)).to(dtype)

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        gradient = gradient.to(wide(gradient.dtype))
        product = gradient * _rectified(y, gradient.dtype, relu)
        return torch.stack([value.sum(_PIXELS, dtype=torch.float64) for value in (gradient, product)])

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> Callable[[int, bool], tuple[Tensor, Tensor]]:
        dtype = wide(gradient.dtype)
        channels = y.shape[1] // branches

        def branch(k: int, reuse: bool = False) -> tuple[Tensor, Tensor]:
            of_gradient, of_r, term = (_channels(v.narrow(0, k * channels, channels), dtype) for v in (p, q, s))
            g, integers = (value.narrow(1, k * channels, channels).to(dtype) for value in (gradient, y))
            out = (of_gradient * g).addcmul_(integers, of_r).add_(term)
            out = out.mul_(integers > 0) if relu else out
            return out, out.sum(_PIXELS)

        return branch

    def padded_signs(self, x: Tensor, padding_value: int, k: int, branches: int) -> Tensor:
        channels = x.shape[1] // branches
        x = x.narrow(1, k * channels, channels)
        return torch.where(x >= 0, 1.0 - padding_value, -1.0 - padding_value).to(self.dtype)

    def sign_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        residual: Tensor | None,
        k: int,
        branches: int,
        out: Tensor,
        surrogate: Callable[[Tensor], Tensor] | None,
    ) -> None:
        dtype, channels = wide(x.dtype), x.shape[1] // branches
        x = x.narrow(1, k * channels, channels).to(dtype)
        found = ((2 - 2 * x.abs()).clamp_(min=0) if surrogate is None else surrogate(x)) * gradient.to(dtype)
        if residual is not None:
            found = found + residual.narrow(1, k * channels, channels)
        out.narrow(1, k * channels, channels).copy_(found)

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor) -> Tensor:
        branches = x.to(wide(x.dtype)).unflatten(1, (len(gate), -1))
        gates, lambdas = (value.to(branches.dtype).view(-1, 1, 1, 1) for value in (gate, scales))
        merged = (branches * lambdas).sum(dim=1, keepdim=True)
        return (merged + gates * (branches - merged)).flatten(1, 2).to(x.dtype)

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        g, branches = (value.to(wide(x.dtype)).unflatten(1, (len(gate), -1)) for value in (gradient, x))
        gates, lambdas = (value.to(g.dtype).view(-1, 1, 1, 1) for value in (gate, scales))
        merged = (branches * lambdas).sum(dim=1, keepdim=True)
        merged_gradient = ((1 - gates) * g).sum(dim=1, keepdim=True)
        out = (gates * g + lambdas * merged_gradient).flatten(1, 2).to(x.dtype)
        sums = ((g * (branches - merged)), merged_gradient * branches)
        return (out, *(value.sum((0, 2, 3, 4)) for value in sums))
