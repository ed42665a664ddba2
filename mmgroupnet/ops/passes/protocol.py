"""The interface between lean training and a backend of passes."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry

# Returns the gradient of a branch, (N, C, H, W). With reuse=True the buffer of the previous branch may be overwritten.
BranchGradient = Callable[[int, bool], Tensor]
# Elementwise surrogate for the gradient of a sign at a map.
Surrogate = Callable[[Tensor], Tensor]


class Formula(IntEnum):
    """Surrogate gradients whose formula backends may have in their kernels."""

    POLYNOMIAL = 0  # max(0, 2 - 2 |x|)
    CLIPPED_IDENTITY = 1  # 1 where |x| <= 1
    SWISH = 2  # SS'(x) of SwishSign, with sharpness beta
    TANH = 3  # max(1, t) (1 - tanh(t x)^2), with sharpness t


@dataclass(frozen=True)
class KnownSurrogate:
    """A surrogate gradient with a known formula.

    Attributes:
        formula: The formula.
        function: The same in torch.
        sharpness: Its parameter; 1 if it has none.
    """

    formula: Formula
    function: Surrogate
    sharpness: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class UnitGradients(NamedTuple):
    """The tensors and options for the gradients of a convolution of signs.

    Attributes:
        geometry: The unit.
        branches: Folded branches of the input.
        shares_weights: Whether they share the weights.
        gradient_of: Returns the gradient of the output.
        x: The prepared input, ``(N, K*C, H, W)``.
        weight: Latent weights, of which only the signs count; for merged bases the merged weights.
        scale: Divisor of the gradients of latent weights, ``(rows,)``, where it is not 0; None for no division.
        residual: Added to the gradient of the input; None for nothing.
        surrogate: The surrogate gradient of each branch; None for ``max(0, 2 - 2|x|)``.
        needs_x, needs_weight: Which gradients are requested.
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
    """Running statistics of a batch norm, which are updated in place.

    Attributes:
        mean, var: ``(C,)``.
        tracked: Number of batches seen, ``()``; None if it is not counted.
        momentum: Weight of the new statistics; None for the mean over all batches.
        moves: Whether they are updated now.
    """

    mean: Tensor
    var: Tensor
    tracked: Tensor | None
    momentum: float | None
    moves: bool


class NormPasses(Protocol):
    """The arithmetic of batch norms over channels, in few launches or calls.

    ``branches`` is the number of branches that share a norm of C channels: y has ``branches * C`` channels. The norm is
    applied to ``scale`` (C,) times r; ``weight`` and ``bias`` are the norm's, ``(C,)`` or None.
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
        """Mean and inverse deviation of this batch or the running ones, ``(C,)`` each, in a dtype that
        :meth:`gradients` takes, and the scale and shift of r that give the output, ``(2, branches * C)``. Updates the
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
    """The passes that lean training needs from a backend.

    Products and sums over pixels are float32 or better, whatever the dtype of the maps.

    Attributes:
        dtype: Dtype of the gradients of convolutions of signs, and of full-precision shortcuts. Signs are convolved in
            it or in a wider one.
        for_floats: The passes for units whose convolutions return floats.
        norms: The arithmetic of batch norms; None for torch's, in double precision.
    """

    dtype: torch.dtype

    @property
    def for_floats(self) -> 'Passes': ...

    @property
    def norms(self) -> NormPasses | None: ...

    def prepare(self, x: Tensor) -> Tensor:
        """Prepares a map for the other passes."""

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        """Convolves the signs of a map with the signs of weights.

        Args:
            x: ``(N, B * in_channels, H, W)``; only its signs count.
            weight: Latent weights ``(rows, in_channels/groups, kh, kw)``; only their signs count.
            geometry: The unit; it does not merge.

        Returns:
            The sums, ``(N, B' * out_channels, H', W')``: int16 if they fit and are exact, otherwise floats.
        """

    def convolve_merged(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        """Convolves the signs of a map with merged weights ``(C_out, C_in/groups, kh, kw)``, in :attr:`dtype` or a
        wider one."""

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        """Sums of r and of r * r over all pixels, ``(2, K*C)`` float64; exact for integers."""

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

        ``following`` is a unit that will convolve the signs of the result with :meth:`convolve`; a backend may compute
        the signs in the same pass. Default: None, no such unit.
        """

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        """Sums of the gradient and of gradient * r over all pixels, ``(2, K*C)`` float64."""

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        """``p * gradient + q * r + s`` where y > 0 (everywhere without ReLU), one branch at a time."""

    def unit_gradients(self, at: UnitGradients) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a convolution of signs by its prepared input and by its weights."""

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor, following: UnitGeometry | None = None) -> Tensor:
        """``m + gate[i] * (x_i - m)`` of all branches, with ``m = sum_j scales[j] * x_j``; ``following`` as for
        :meth:`affine`."""

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`connect` by ``x``, ``gate`` and ``scales``."""
