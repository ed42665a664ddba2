"""A unit of a lean chain: conv, ReLU, norm, residual."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmgroupnet.layers.lean.batch_norm import AffineOfNorm, BatchNorm, Statistics
from mmgroupnet.layers.lean.float_shortcut import FloatShortcut
from mmgroupnet.layers.lean.interface import BinaryConv, ConvOperands
from mmgroupnet.layers.lean.sign_conv import SignConv
from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.ops.passes import Passes

# p, q and s of a gradient ``p * g + q * r + s``, per folded channel.
Vectors = tuple[Tensor, Tensor, Tensor]


class ChainUnit(NamedTuple):
    """A conv of a chain and the operations behind it.

    Attributes:
        conv: A binary conv, see :class:`mmgroupnet.layers.lean.BinaryConv`; in a shortcut also full-precision layers.
        norm: The norm behind it.
        relu: Whether a ReLU is between them.
        residual: The map that is added at the end: the unit's input, or the chain's shortcut.
    """

    conv: nn.Module
    norm: nn.Module
    relu: bool = True
    residual: Residual = Residual.NONE

    def tensors(self) -> list[Tensor | None]:
        """Tensors that get gradients: operands of the conv, weight and bias of the norm."""
        of_conv = self.conv.operands() if isinstance(self.conv, BinaryConv) else self.conv.parameters()
        return [*of_conv, self.norm.weight, self.norm.bias]

    @property
    def num_tensors(self) -> int:
        """Number of :meth:`tensors`."""
        of_conv = ConvOperands._fields if isinstance(self.conv, BinaryConv) else list(self.conv.parameters())
        return len(of_conv) + len(AffineOfNorm._fields)


class Kept(NamedTuple):
    """The tensors that a unit keeps for its backward pass.

    Attributes:
        y: The integers (floats for other convs); None if they are recomputed.
        statistics: Statistics of the norm.
    """

    y: Tensor | None
    statistics: Statistics

    def tensors(self) -> list[Tensor | None]:
        """A list of the tensors, for autograd to save."""
        return [self.y, *self.statistics]

    @classmethod
    def of(cls, tensors: Iterator[Tensor | None]) -> 'Kept':
        """Takes its tensors from those that autograd saved."""
        y, mean, inverse_deviation, num_values, vectors = islice(tensors, 1 + len(Statistics._fields))
        assert mean is not None and inverse_deviation is not None
        return cls(y, Statistics(mean, inverse_deviation, num_values, vectors))


class LeanUnit:
    """Forward and backward pass of a unit of a chain without autograd; its tensors are passed in.

    Args:
        unit: The unit; its options are read here, once.
        branches: Folded branches of its input.
        shares_weights: Whether the branches share the unit.
        passes: The backend.
    """

    def __init__(self, unit: ChainUnit, branches: int, shares_weights: bool, passes: Passes) -> None:
        self.relu, self.residual, self.branches = unit.relu, unit.residual, branches
        self.conv: SignConv | FloatShortcut
        if isinstance(unit.conv, BinaryConv):
            self.conv = SignConv(unit.conv, branches, passes)
        else:
            self.conv = FloatShortcut(unit.conv, branches, passes)
        self.passes = passes if self.conv.gives_integers else passes.for_floats
        self.norm = BatchNorm(unit.norm, branches if shares_weights else 1, self.passes.norms)
        self.prepare = passes.prepare

    def split(self, values: Sequence) -> tuple[Any, AffineOfNorm]:
        """Values of the tensors of the conv and of the norm."""
        *of_conv, weight, bias = values
        return self.conv.operands(of_conv), AffineOfNorm(weight, bias)

    def convolves(self, tensors: Sequence[Tensor | None]) -> UnitGeometry | None:
        """The geometry of the convolution if it reads the signs of the unshifted input; None with a shift in front, or
        for other convolutions."""
        if not isinstance(self.conv, SignConv) or self.conv.geometry.merges:
            return None
        if self.split(tensors)[0].shift is not None:
            return None
        return self.conv.geometry

    def forward(self, unit: ChainUnit, x: Tensor, tensors: Sequence[Tensor | None]) -> Kept:
        """Convolves, calls the conv's observer with the signs, and updates the norm's statistics."""
        operands, affine = self.split(tensors)
        observed = unit.conv if isinstance(unit.conv, BinaryConv) else None
        y = self.conv.forward(x, operands, observed=observed)
        scale = self.conv.output_scale(operands)
        if self.norm.passes is not None:
            return Kept(y, self.norm.statistics_of(unit.norm, y, self.relu, affine, scale))
        moments = self.passes.moments(y, self.relu) if self.norm.uses_batch else None
        pixels = y.shape[0] * y.shape[2] * y.shape[3]
        return Kept(y, self.norm.statistics(unit.norm, moments, pixels, scale))

    def output(
        self,
        kept: Kept,
        x: Tensor,
        shortcut: Tensor | None,
        tensors: Sequence[Tensor | None],
        following: UnitGeometry | None = None,
    ) -> Tensor:
        """The output for an input and, if the unit adds it, the chain's shortcut; ``following`` is :meth:`convolves` of
        the next unit."""
        operands, affine = self.split(tensors)
        y = self.conv.forward(x, operands) if kept.y is None else kept.y
        residual = self.residual.of(x, shortcut)
        scale, shift = self.norm.scale_and_shift(affine, kept.statistics, self.conv.output_scale(operands))
        # Also for a unit in floats, because the next unit needs it.
        return self.prepare(self.passes.affine(y, scale, shift, residual, self.relu, x.dtype, following))

    def backward(
        self,
        gradient: Tensor,
        x: Tensor,
        kept: Kept,
        tensors: Sequence[Tensor | None],
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of the tensors. The gradient of the residual that the unit
        adds is ``gradient`` itself; the chain passes it on."""
        operands, affine = self.split(tensors)
        needs, _ = self.split(needed)
        y = self.conv.forward(x, operands) if kept.y is None else kept.y
        scale = self.conv.output_scale(operands)
        needs_scale = isinstance(self.conv, SignConv) and needs.scale and not self.conv.geometry.merges
        of_norm, vectors, of_scale = self._norm_gradients(gradient, y, affine, kept.statistics, scale, needs_scale)
        gradient_of = self.passes.affine_gradient(gradient, y, *vectors, self.branches, self.relu)
        x_gradient, of_conv = self.conv.backward(gradient_of, x, operands, residual, needs_x, needs)
        if needs_scale:
            of_weight, _, of_shift, of_merge = of_conv
            of_conv = [of_weight, of_scale, of_shift, of_merge]
        return x_gradient, only_needed([*of_conv, *of_norm], needed, tensors)

    def _norm_gradients(
        self,
        gradient: Tensor,
        y: Tensor,
        affine: AffineOfNorm,
        statistics: Statistics,
        scale: Tensor,
        needs_scale: bool,
    ) -> tuple[AffineOfNorm, Vectors, Tensor | None]:
        """Gradients of the norm, the coefficients p, q and s of the gradient ``p * g + q * r + s`` of y, and, if
        requested, the gradient of the scale."""
        norm = self.norm
        if norm.passes is not None and not needs_scale:
            of_weight, of_bias, vectors = norm.passes.gradients(
                gradient, y, self.relu, norm.branches, statistics[:2], scale, affine.weight, norm.uses_batch
            )
            p, q, s = vectors
            return AffineOfNorm(of_weight, of_bias), (p, q, s), None
        if statistics.num_values is None:
            num_values = y.numel() // y.shape[1] * norm.branches
            statistics = statistics._replace(num_values=scale.new_full((), num_values, dtype=torch.float64))
        sums = self.passes.gradient_sums(gradient, y, self.relu)
        of_norm, (p, q, s) = norm.backward(affine, sums, statistics, scale)
        of_scale = None
        if needs_scale:
            # sum over (p * g + q * r + s) * r, the gradient of scale * y times y, which is r or has no gradient.
            r, r_r = self.passes.moments(y, self.relu)
            of_scale = (p * sums[1] + q * r_r + s * r).view(-1, len(scale)).sum(0)
        # The gradient of y is that of scale * y times the scale.
        folded = scale.double().repeat(len(p) // len(scale))
        return of_norm, (p * folded, q * folded, s * folded), of_scale


def only_needed(
    gradients: Sequence[Tensor | None], needed: Sequence[bool], like: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The requested gradients, in the dtypes of their tensors."""
    found: list[Tensor | None] = []
    for gradient, is_needed, tensor in zip(gradients, needed, like, strict=True):
        if is_needed:
            assert gradient is not None and tensor is not None
            found.append(gradient.to(tensor.dtype))
        else:
            found.append(None)
    return found
