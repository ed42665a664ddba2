"""Passes of lean training in plain torch, for any device and floating dtype; see :class:`mmgroupnet.ops.passes.Passes`
for what each does."""

import torch
from torch import Tensor

from mmgroupnet.ops import simulation
from mmgroupnet.ops.float_convolution import convolve_signs, signs_of
from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.passes.branchwise import BranchwisePasses
from mmgroupnet.ops.passes.protocol import BranchGradient, Surrogate
from mmgroupnet.ops.precision import wide

_PIXELS = (0, 2, 3)


def _channels(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector over the channels in the shape and dtype to broadcast to maps."""
    return vector.to(dtype).view(-1, 1, 1)


def _rectified(y: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    y = y.to(dtype)
    return y.clamp(min=0) if relu else y


def _branch(x: Tensor, k: int, branches: int) -> Tensor:
    return x.chunk(branches, dim=1)[k]


class TorchPasses(BranchwisePasses):
    """Passes in plain torch.

    Args:
        dtype: Dtype of the convolutions.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.for_floats = self

    def prepare(self, x: Tensor) -> Tensor:
        return x.detach()

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        y = convolve_signs(geometry, signs_of(x, self.dtype), signs_of(weight, self.dtype))
        # Half precision rounds sums, and int16 would save nothing, so they stay floats. In float32, Winograd
        # convolutions differ from the integers only by rounding.
        is_exact = self.dtype in (torch.float32, torch.float64) and geometry.sums_fit_int16
        return y.round_().to(torch.int16) if is_exact else y

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        if y.dtype == torch.int16:
            r = _rectified(y, torch.int32, relu)  # its squares are below 2**31
            return torch.stack([r.sum(_PIXELS), r.square().sum(_PIXELS)]).double()
        r = _rectified(y, wide(y.dtype), relu)
        pixels = r.numel() // r.shape[1]
        if pixels == 0:
            return r.new_zeros(2, r.shape[1], dtype=torch.float64)
        # Squares of floats would cancel if the mean is large; torch takes them around the mean.
        variance, mean = (value.double() for value in torch.var_mean(r, _PIXELS, correction=0))
        return torch.stack([mean, variance + mean.square()]) * pixels

    def affine(
        self,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
        following: UnitGeometry | None = None,
    ) -> Tensor:
        computed = wide(self.dtype)
        out = torch.addcmul(_channels(shift, computed), _rectified(y, computed, relu), _channels(scale, computed))
        return (out if residual is None else out.add_(residual)).to(dtype)

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        gradient = gradient.to(wide(gradient.dtype))
        product = gradient * _rectified(y, gradient.dtype, relu)
        return torch.stack([value.sum(_PIXELS, dtype=torch.float64) for value in (gradient, product)])

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        dtype = wide(gradient.dtype)

        def branch(k: int, reuse: bool = False) -> Tensor:
            of_gradient, of_r, term = (_channels(vector.chunk(branches)[k], dtype) for vector in (p, q, s))
            g, integers = (_branch(value, k, branches).to(dtype) for value in (gradient, y))
            out = (of_gradient * g).addcmul_(integers, of_r).add_(term)
            return out.mul_(integers > 0) if relu else out

        return branch

    def branch_signs(self, x: Tensor, k: int, branches: int) -> Tensor:
        return signs_of(_branch(x, k, branches), self.dtype)

    def weight_signs(self, weight: Tensor) -> Tensor:
        return signs_of(weight, self.dtype)

    def sign_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        residual: Tensor | None,
        k: int,
        branches: int,
        out: Tensor,
        surrogate: Surrogate | None,
    ) -> None:
        dtype = wide(x.dtype)
        x = _branch(x, k, branches).to(dtype)
        found = ((2 - 2 * x.abs()).clamp_(min=0) if surrogate is None else surrogate(x)) * gradient.to(dtype)
        if residual is not None:
            found = found + _branch(residual, k, branches)
        _branch(out, k, branches).copy_(found)

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor, following: UnitGeometry | None = None) -> Tensor:
        dtype = wide(x.dtype)
        return simulation.connect(x.to(dtype), len(gate), scales.to(dtype), gate.to(dtype)).to(x.dtype)

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
