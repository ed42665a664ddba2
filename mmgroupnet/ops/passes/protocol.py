"""What lean training asks of a backend of passes."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mmgroupnet.ops.geometry import UnitGeometry

# Gives the gradient of a branch, (N, C, H, W). With reuse=True the buffer of the previous branch may be overwritten.
BranchGradient = Callable[[int, bool], Tensor]
# Elementwise stand-in for the gradient of a sign at a map.
Surrogate = Callable[[Tensor], Tensor]


class Passes(Protocol):
    """What lean training asks of a backend.

    Products and sums over pixels are float32 or better, whatever the maps are.

    Attributes:
        dtype: Of the convolutions of signs, and of their gradients.
        for_floats: The passes for units whose convolutions give floats.
    """

    dtype: torch.dtype
    for_floats: 'Passes'

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

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        """Sums of r and of r * r over all pixels, ``(2, K*C)`` float64; of integers they are exact."""

    def affine(self, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """``scale * r + shift + residual``, in float32 or better."""

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        """Sums of the gradient and of gradient * r over all pixels, ``(2, K*C)`` float64."""

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        """``p * gradient + q * r + s`` where y > 0 (everywhere without ReLU), one branch at a time."""

    def branch_signs(self, x: Tensor, k: int, branches: int) -> Tensor:
        """Signs of branch k, ``(N, C, H, W)``, in :attr:`dtype`."""

    def weight_signs(self, weight: Tensor) -> Tensor:
        """Signs of latent weights ``(C_out, C_in/groups, kh, kw)``, in :attr:`dtype`."""

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
        """Writes ``surrogate(x) * gradient + residual`` of branch k into ``out``.

        Args:
            gradient: Of the signs of the branch, ``(N, C, H, W)``.
            x, residual, out: Of all branches, ``(N, K*C, H, W)``, as prepared.
            k: The branch.
            branches: Number K.
            surrogate: The surrogate gradient; None for ``max(0, 2 - 2|x|)``.
        """

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor) -> Tensor:
        """``m + gate[i] * (x_i - m)`` of all branches, with ``m = sum_j scales[j] * x_j``."""

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`connect` in ``x``, ``gate`` and ``scales``."""
