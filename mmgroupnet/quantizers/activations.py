"""Binarisation of activations. A new estimator is one class with a ``surrogate_gradient``, see docs/quantizers.md."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.quantizers.error_decay import ErrorDecay
from mmgroupnet.registry import MODELS


def binary_sign(x: Tensor) -> Tensor:
    """Sign of ``x`` in {-1, +1}: zero and negative zero give +1, since one bit cannot hold a third value. Shape and
    dtype are kept."""
    # Not in place: torch.compile of torch 2.11 loses the gradient of an autograd function that returns the result of an
    # operation in place.
    return (x >= 0).to(x.dtype) * 2 - 1


def apply_function(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    """Applies an autograd function, but without autograd while ``torch.jit`` traces: such a trace could not be
    saved."""
    return function.forward(*inputs) if torch.jit.is_tracing() else function.apply(*inputs)


class _SignFunction(torch.autograd.Function):
    """``binary_sign`` in the forward pass, multiplication by the surrogate gradient in the backward pass."""

    @staticmethod
    def forward(x: Tensor, surrogate_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        return binary_sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.surrogate_gradient = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad_output * ctx.surrogate_gradient(x), None


class SignActivation(nn.Module, ABC):
    r"""Sign activation :math:`q(x) \in \{-1, +1\}` with a surrogate for its gradient, which is zero almost everywhere.

    .. math::
        q(x) = \operatorname{sign}(x + \beta), \qquad
        \frac{\partial q}{\partial x} = \frac{\partial q}{\partial \beta} \approx \operatorname{surrogate}(x + \beta)

    A subclass defines :meth:`surrogate_gradient`, and :meth:`shift_of_channels` if it has a :math:`\beta`; lean
    training and packing support both. A subclass with its own ``forward`` trains plain and is not packed.

    Shape: any; the output has the input's shape and dtype and holds only -1 and +1 (zero and negative zero give +1).
    """

    @abstractmethod
    def surrogate_gradient(self, x: Tensor) -> Tensor:
        """Surrogate for dq/dx at ``x``, elementwise, in the shape of ``x``.

        The method may read the module's state, which must not change between forward and backward pass. Parameters that
        only this method reads would get no gradient and are refused: make them buffers. If the module has no buffers
        and parameters, the method may be called with one branch of the channels at a time.
        """

    def shift_of_channels(self) -> Tensor | None:
        """The shift that is added to the input in front of the sign, ``(C,)``, differentiable by the module's
        parameters; None for no shift."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift_of_channels()
        if shift is not None:
            x = x + shift.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
        return apply_function(_SignFunction, x, self.surrogate_gradient)


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

    def shift_of_channels(self) -> Tensor:
        return self.shift


@MODELS.register_module()
class SwishSign(SignActivation):
    r"""Sign activation with the gradient of SignSwish, a smooth hump with negative tails.

    .. math::
        \operatorname{SS}_\beta(x) = 2 \sigma(\beta x) \bigl(1 + \beta x (1 - \sigma(\beta x))\bigr) - 1, \qquad
        \frac{\partial q}{\partial x} \approx \operatorname{SS}_\beta'(x)
            = \frac{\beta \bigl(2 - \beta x \tanh(\beta x / 2)\bigr)}{1 + \cosh(\beta x)}

    Args:
        beta: Sharpness, above 0. Default: 5.

    Shape: any; see :class:`SignActivation`.

    Source: Darabi et al., BNN+: Improved Binary Network Training, 2018 (arXiv 1812.11800), section 3.

    Raises:
        UserError: If ``beta`` is not above 0.
    """

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__()
        if not beta > 0:
            raise UserError(f'beta={beta}: give the sharpness of SwishSign, a number above 0')
        self.beta = beta

    def surrogate_gradient(self, x: Tensor) -> Tensor:
        z = (self.beta * x).clamp(-100, 100)  # 0 beyond; an overflow in half precision would give 0 * infinity
        # 1 / (1 + cosh(z)) = 2 * sigmoid(z) * sigmoid(-z)
        return 2 * self.beta * (2 - z * (z / 2).tanh()) * z.sigmoid() * (-z).sigmoid()

    def extra_repr(self) -> str:
        return f'beta={self.beta}'


@MODELS.register_module()
class ErrorDecaySign(ErrorDecay, SignActivation):
    """Sign activation with the error decay estimator of IR-Net, see :class:`ErrorDecay` for formula and schedule.

    Shape: any; see :class:`SignActivation`.

    Source: Qin et al., IR-Net, CVPR 2020, section 3.3.
    """


def is_standard_sign(activation: nn.Module) -> bool:
    """Whether an activation quantizer computes the same as :class:`SignActivation`, with any surrogate gradient and
    shift, so that lean training and packing may replace it."""
    has_own_forward = 'forward' in activation.__dict__ or type(activation).forward is not SignActivation.forward
    return isinstance(activation, SignActivation) and not has_own_forward


@MODELS.register_module()
class Tanh(nn.Tanh):
    r"""Real-valued substitute for the sign, :math:`\tanh(x)`, in the first stage of training (Group-Net's released
    recipe).

    Shape: any, kept.
    """


def build_quantizer(cfg: dict, num_channels: int) -> nn.Module:
    """Builds a quantizer for the activations or weights of a layer.

    Args:
        cfg: Config with its ``type``, for example ``dict(type='mmgroupnet.PolynomialSign')``.
        num_channels: Folded channels of its input (for weights: of the layer's output). It is passed only to a
            quantizer with an argument of that name, which learns something per channel.

    Raises:
        TypeError: If the class leaves out a method that it has to define.
        UserError: If a parameter of an estimator can never get a gradient.
    """
    kind: Any = cfg['type'] if inspect.isclass(cfg['type']) else MODELS.get(cfg['type'])
    if inspect.isabstract(kind):
        missing = ', '.join(sorted(kind.__abstractmethods__))
        raise TypeError(f'{kind.__name__} does not define {missing}, which a quantizer of its kind has to')
    if kind is not None and 'num_channels' in inspect.signature(kind).parameters:
        cfg = dict(cfg, num_channels=num_channels)
    quantizer = MODELS.build(cfg)
    if is_standard_sign(quantizer):
        with torch.enable_grad():
            refuse_idle_parameters(quantizer, quantizer.shift_of_channels())
    return quantizer


def refuse_idle_parameters(quantizer: nn.Module, out: Tensor | None) -> None:
    """Refuses a quantizer with parameters that can get no gradient.

    Args:
        quantizer: The quantizer.
        out: The outputs that depend on its parameters by autograd; None for none.

    Raises:
        UserError: If a parameter that requires a gradient does not influence ``out``.
    """
    wanted = {name: parameter for name, parameter in quantizer.named_parameters() if parameter.requires_grad}
    if not wanted or torch.is_inference_mode_enabled():
        return
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if out is not None and out.requires_grad:
        found = torch.autograd.grad(out.sum(), list(wanted.values()), allow_unused=True)
    idle = [name for name, gradient in zip(wanted, found, strict=True) if gradient is None]
    if idle:
        raise UserError(
            f'{type(quantizer).__name__} has the parameters {", ".join(idle)}, which can get no gradient: a surrogate '
            'gradient only shapes the backward pass. Make them buffers, or use them in shift_of_channels (for weights: '
            'scale or latent) or in a forward of its own'
        )
