"""What lean training asks of a backend of passes."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry

# Gives the gradient of a branch, (N, C, H, W). With reuse=True the buffer of the previous branch may be overwritten.
BranchGradient = Callable[[int, bool], Tensor]
# Elementwise stand-in for the gradient of a sign at a map.
Surrogate = Callable[[Tensor], Tensor]


class Formula(IntEnum):
    """Surrogate gradients of which backends may have the formula in their kernels."""

    POLYNOMIAL = 0  # max(0, 2 - 2 |x|)
    CLIPPED_IDENTITY = 1  # 1 where |x| <= 1
    SWISH = 2  # SS'(x) of SwishSign, of sharpness beta
    TANH = 3  # max(1, t) (1 - tanh(t x)^2), of sharpness t


@dataclass(frozen=True)
class KnownSurrogate:
    """A surrogate gradient of a known formula.

    Attributes:
        formula: The formula.
        function: The same in torch.
        sharpness: Its parameter; 1 where it has none.
    """

    formula: Formula
    function: Surrogate
    sharpness: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class UnitGradients(NamedTuple):
    """What a convolution of signs is differentiated at.

    Attributes:
        geometry: The unit.
        branches: Folded branches of the input.
        shares_weights: Whether they share the weights.
        gradient_of: Gives the gradient of the output.
        x: The input, as prepared, ``(N, K*C, H, W)``.
        weight: Latent weights, of which the signs count; of merged bases the merged weights.
        scale: What the gradients of latent weights are divided by, ``(rows,)``, where it is not 0; None for nothing.
        residual: Added to the gradient of the input; None for nothing.
        surrogate: The surrogate gradient of each branch; None for ``max(0, 2 - 2|x|)``.
        needs_x, needs_weight: Which gradients are asked for.
    """

    geometry: UnitGeometry
    branches: int
    shares_weights: bool
    gradient_of: BranchGradient
    x: Tensor
    weight: Tensor
    scale: Tensor | None
    residual: Tensor | None
    surrogate: Callable[[int], Surrogate | None]
    needs_x: bool
    needs_weight: bool


class Running(NamedTuple):
    """Running statistics of a batch norm, in place.

    Attributes:
        mean, var: ``(C,)``.
        tracked: Number of batches seen, ``()``; None where it is not counted.
        momentum: Weight of the new ones; None for the mean of all.
        moves: Whether they move now.
    """

    mean: Tensor
    var: Tensor
    tracked: Tensor | None
    momentum: float | None
    moves: bool


class NormPasses(Protocol):
    """The arithmetic of batch norms over channels, in few launches or calls.

    ``branches`` are those that share the norm of C channels: y has ``branches * C``. ``scale`` (C,) times r is what is
    normed; ``weight`` and ``bias`` are the norm's, ``(C,)`` or None.
    """

    def statistics(
        self,
        y: Tensor,
        relu: bool,
        branches: int,
        scale: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running | None,
        eps: float,
        uses_batch: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and inverse deviation of this batch or the running ones, ``(C,)`` each and of a dtype that
        :meth:`gradients` takes, and the scale and shift of r that give the output, ``(2, branches * C)``. Moves the
        running statistics."""

    def gradients(
        self,
        gradient: Tensor,
        y: Tensor,
        relu: bool,
        branches: int,
        statistics: tuple[Tensor, Tensor],
        scale: Tensor,
        weight: Tensor | None,
        uses_batch: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of weight and bias, ``(C,)``, and p, q and s of the gradient ``p * gradient + q * r + s`` of y,
        ``(3, branches * C)``."""


class Passes(Protocol):
    """What lean training asks of a backend.

    Products and sums over pixels are float32 or better, whatever the maps are.

    Attributes:
        dtype: Of the convolutions of signs, and of their gradients.
        for_floats: The passes for units whose convolutions give floats.
        norms: The arithmetic of batch norms; None where it is torch's, in double precision.
    """

    dtype: torch.dtype

    @property
    def for_floats(self) -> 'Passes': ...

    @property
    def norms(self) -> NormPasses | None: ...

    def prepare(self, x: Tensor) -> Tensor:
        """A map as the other passes take it."""

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        """Convolves the signs of a map with the signs of weights.

        Args:
            x: ``(N, B * in_channels, H, W)``; only its signs count.
            weight: Latent weights ``(rows, in_channels/groups, kh, kw)``; only their signs count.
            geometry: The unit; it does not merge.

        Returns:
            The sums, ``(N, B' * out_channels, H', W')``: int16 where they fit and are exact, else floats.
        """

    def convolve_merged(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        """Convolves the signs of a map with merged weights ``(C_out, C_in/groups, kh, kw)``, in :attr:`dtype`."""

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        """Sums of r and of r * r over all pixels, ``(2, K*C)`` float64; of integers they are exact."""

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
        """``scale * r + shift + residual``, computed in float32 or better, as a prepared map of a dtype.

        ``following`` is a unit that will convolve the signs of the result with :meth:`convolve`: a backend may make
        them on the way. Default: None, there is none.
        """

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        """Sums of the gradient and of gradient * r over all pixels, ``(2, K*C)`` float64."""

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        """``p * gradient + q * r + s`` where y > 0 (everywhere without ReLU), one branch at a time."""

    def unit_gradients(self, at: UnitGradients) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a convolution of signs in its input, as prepared, and in its weights."""

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor, following: UnitGeometry | None = None) -> Tensor:
        """``m + gate[i] * (x_i - m)`` of all branches, with ``m = sum_j scales[j] * x_j``; ``following`` as for
        :meth:`affine`."""

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`connect` in ``x``, ``gate`` and ``scales``."""
