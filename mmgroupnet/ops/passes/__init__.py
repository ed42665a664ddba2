"""Passes of lean training over the integers of binary convolutions, behind one protocol.

A backend is chosen once per chain, by what all processes know alike: the device and the dtypes. ``KernelPasses`` are
the compiled kernels of the CPU, ``TorchPasses`` run on any device in any floating dtype. A backend for GPUs is one more
file.

Integers ``y`` are ``(N, K*C, H, W)``. With ``relu``, r = max(y, 0), else r = y; scales and shifts are per folded
channel. Autograd sees nothing of it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from mmgroupnet.ops import kernels
from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.passes.kernel_passes import KernelPasses
from mmgroupnet.ops.passes.torch_passes import TorchPasses, wide

__all__ = [
    'BranchGradient',
    'KernelPasses',
    'Passes',
    'TorchPasses',
    'autocast_dtype',
    'choose_passes',
    'wide',
    'without_autocast',
]

# Gives the gradient of a branch, (N, C, H, W), and its sum over all pixels, (C,). With reuse=True the buffer of the
# previous branch may be overwritten.
BranchGradient = Callable[[int, bool], tuple[Tensor, Tensor]]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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

    def affine(
        self, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool, dtype: torch.dtype
    ) -> Tensor:
        """``scale * r + shift + residual``, in ``dtype``."""

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        """Sums of the gradient and of gradient * r over all pixels, ``(2, K*C)`` float64."""

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        """``p * gradient + q * r + s`` where y > 0 (everywhere without ReLU), one branch at a time."""

    def padded_signs(self, x: Tensor, padding_value: int, k: int, branches: int) -> Tensor:
        """Signs of branch k minus ``padding_value``, ``(N, C, H, W)``: where the signs are padded with it, these are
        padded with 0."""

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


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would convolve in; None where it is off."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off: passes have chosen their dtypes."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def choose_passes(x: Tensor, weight: Tensor, part: str) -> Passes:
    """The backend for an input and latent weights; ``part`` names whose they are in an error.

    Half precision saves nothing on the CPU: there the kernels compute in float32, under autocast as well.

    Raises:
        ValueError: If no backend computes in the dtype of the input or of autocast.
    """
    dtype = autocast_dtype(x) or x.dtype
    if dtype not in _DTYPES or x.dtype not in _DTYPES:
        what = 'autocast' if x.dtype in _DTYPES else 'inputs'
        raise ValueError(f'{part} under {what} of {dtype}: it trains in {", ".join(map(str, _DTYPES))}')
    is_ours = x.device.type == 'cpu' and weight.dtype == torch.float32 and x.dtype != torch.float64
    return KernelPasses() if is_ours and kernels.library() is not None else TorchPasses(dtype)
