"""Binarisation of activations. A new estimator is one class with a ``surrogate_gradient``."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmgroupnet.registry import MODELS


def binary_sign(x: Tensor) -> Tensor:
    """Sign of ``x`` in {-1, +1}: zero and negative zero give +1, since one bit cannot hold a third value. Shape and
    dtype are kept."""
    # Not in place: torch.compile of torch 2.11 loses the gradient of an autograd function that returns the result of an
    # operation in place.
    return (x >= 0).to(x.dtype) * 2 - 1


class _SignFunction(torch.autograd.Function):
    """``binary_sign`` forwards, multiplication by the surrogate gradient backwards."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, surrogate_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate_gradient = surrogate_gradient
        return binary_sign(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad_output * ctx.surrogate_gradient(x), None


class SignActivation(nn.Module, ABC):
    r"""Sign activation :math:`q(x) \in \{-1, +1\}` with a surrogate for its gradient, which is zero almost everywhere.

    Shape: any; the output has the input's shape and dtype and holds only -1 and +1 (zero and negative zero give +1).
    """

    @staticmethod
    @abstractmethod
    def surrogate_gradient(x: Tensor) -> Tensor:
        """Stand-in for dq/dx at ``x``; same shape as ``x``."""

    def forward(self, x: Tensor) -> Tensor:
        return _SignFunction.apply(x, self.surrogate_gradient)


@MODELS.register_module()
class PolynomialSign(SignActivation):
    r"""Sign activation with the piecewise-polynomial surrogate gradient of Bi-Real Net.

    .. math::
        q(x) = \begin{cases} -1 & x < 0 \\ +1 & x \ge 0 \end{cases}
        \qquad
        \frac{\partial q}{\partial x} \approx \max(0,\; 2 - 2|x|)

    Shape: any; see :class:`SignActivation`.

    Source: Liu et al., Bi-Real Net, ECCV 2018; used by Group-Net for all activations.
    """

    @staticmethod
    def surrogate_gradient(x: Tensor) -> Tensor:
        return (2 - 2 * x.abs()).clamp_(min=0)


@MODELS.register_module()
class ClippedIdentitySign(SignActivation):
    r"""Sign activation with the gradient of the clipped identity (hard tanh), the "straight-through estimator".

    .. math::
        \frac{\partial q}{\partial x} \approx \begin{cases} 1 & |x| \le 1 \\ 0 & |x| > 1 \end{cases}

    Shape: any; see :class:`SignActivation`.

    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    @staticmethod
    def surrogate_gradient(x: Tensor) -> Tensor:
        return (x.abs() <= 1).to(x.dtype)


@MODELS.register_module()
class ShiftedSign(PolynomialSign):
    r"""Sign activation with a learned threshold per channel (RSign of ReActNet).

    .. math::
        q(x_c) = \operatorname{sign}(x_c + \beta_c), \qquad
        \frac{\partial q}{\partial x_c} = \frac{\partial q}{\partial \beta_c} \approx \max(0,\; 2 - 2|x_c + \beta_c|)

    Args:
        num_channels: Channels of the input; a binary conv passes it. The shift starts at 0.

    Shape: ``(N, num_channels, ...)``, kept.

    Source: Liu et al., ReActNet, ECCV 2020, section 4.2 (there written as a threshold, ``alpha = -beta``).
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift.view(-1, *[1] * (x.dim() - 2)))


def is_plain_sign(activation: nn.Module) -> bool:
    """Whether a quantizer is a sign with nothing in front of it but the shift of :class:`ShiftedSign`; its surrogate
    gradient may be any."""
    return isinstance(activation, SignActivation) and type(activation).forward in (
        SignActivation.forward,
        ShiftedSign.forward,
    )


@MODELS.register_module()
class Tanh(nn.Tanh):
    r"""Real-valued stand-in for the sign, :math:`\tanh(x)`, in the first stage of training (Group-Net's released
    recipe).

    Shape: any, kept.
    """


def build_activation(cfg: dict, num_channels: int) -> nn.Module:
    """Builds an activation quantizer of a layer.

    Args:
        cfg: Config with its ``type``, for example ``dict(type='mmgroupnet.PolynomialSign')``.
        num_channels: Channels of the map that it binarises; only those which learn something per channel get it.
    """
    quantizer = MODELS.get(cfg['type'])
    if quantizer is not None and 'num_channels' in inspect.signature(quantizer).parameters:
        cfg = dict(cfg, num_channels=num_channels)
    return MODELS.build(cfg)
