"""Binarisation of weights. A new scale is one class with a ``scale``, see docs/quantizers.md."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.quantizers.activations import apply_function, binary_sign, refuse_idle_parameters
from mmgroupnet.quantizers.error_decay import ErrorDecay
from mmgroupnet.registry import MODELS

Surrogate = Callable[[Tensor], Tensor]


class BinaryWeight(NamedTuple):
    """Weights ``scale * sign(latent)`` of K folded branches; their gradient passes to ``latent`` unchanged.

    Attributes:
        latent: Input of the sign, ``(K*C_out, C_in/groups, kh, kw)``.
        scale: ``(K*C_out,)``, not negative.
    """

    latent: Tensor
    scale: Tensor


class _InFrontOfSign(torch.autograd.Function):
    """The identity, except that it flips the signs of channels with negative scale. The backward pass multiplies by the
    surrogate gradient and flips the same channels."""

    @staticmethod
    def forward(latent: Tensor, negative: Tensor | None, surrogate: Surrogate | None) -> Tensor:
        # sign(-0) = sign(0), so the sign is flipped, not its input.
        return latent.view_as(latent) if negative is None else torch.where(negative, -binary_sign(latent), latent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        latent, negative, ctx.surrogate = inputs
        ctx.save_for_backward(None if ctx.surrogate is None else latent, negative)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        latent, negative = ctx.saved_tensors
        if ctx.surrogate is not None:
            gradient = gradient * ctx.surrogate(latent)
        return gradient if negative is None else torch.where(negative, -gradient, gradient), None, None


class _Signs(torch.autograd.Function):
    """Signs of the weights in the forward pass; divides the gradient by the scale in the backward pass, see
    :meth:`SignWeight.signs`."""

    @staticmethod
    def forward(latent: Tensor, scale: Tensor) -> Tensor:
        return binary_sign(latent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * inverse_scale(scale).to(gradient.dtype).view(-1, 1, 1, 1), None


def inverse_scale(scale: Tensor) -> Tensor:
    """Factor from the gradient of the signs to that of ``scale * signs``; finite, because the former is 0 where the
    scale is 0."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny).reciprocal()


class _ScaledSigns(torch.autograd.Function):
    """``scale * sign(latent)``; the gradient passes to ``latent`` unchanged."""

    @staticmethod
    def forward(latent: Tensor, scale: Tensor) -> Tensor:
        return binary_sign(latent) * scale.view(-1, 1, 1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0] if ctx.needs_input_grad[1] else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        (latent,) = ctx.saved_tensors
        return gradient, None if latent is None else (gradient * binary_sign(latent)).sum((1, 2, 3))


class SignWeight(nn.Module, ABC):
    r"""Binarised weights :math:`\alpha \operatorname{sign}(u(w))`. The gradient passes to :math:`u` unchanged (straight
    through), and latent weights are not clipped.

    A subclass defines :meth:`scale` and, if they differ from the default, :meth:`latent` (:math:`u`, by default
    :math:`w`) and :meth:`surrogate_gradient`. Lean training and packing support all three. Gradients pass through the
    scale to the parameters of the quantizer, not to the weights. A subclass with its own ``forward`` or ``signs``
    trains plain; it is packed if its weights have one magnitude per output channel.

    Shape: latent weights of ``num_bases`` folded branches, ``(K*C_out, C_in/groups, kh, kw)``, kept.
    """

    @abstractmethod
    def scale(self, latent: Tensor) -> Tensor:
        r"""The scale :math:`\alpha` for the input of the sign, which is ``(K, C_out, C_in/groups, kh, kw)``, detached.
        The result broadcasts to ``(K, C_out, 1, 1, 1)``. Only a quantizer with parameters or buffers may return
        negative scales, which flip the signs of their channels."""

    def latent(self, weight: Tensor) -> Tensor:
        """The input of the sign for latent weights ``(K, C_out, C_in/groups, kh, kw)``, differentiable; by default the
        weights themselves."""
        return weight

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        """Surrogate for the gradient of ``|scale| * sign(latent)`` at ``latent``, ``(K, C_out, C_in/groups, kh, kw)``;
        by default 1. Like :meth:`SignActivation.surrogate_gradient`, it may read the module's state."""
        return torch.ones_like(latent)

    def start(self, weight: Tensor, num_bases: int = 1) -> None:
        """Sets the first values of learned parameters, given the initial latent weights; by default does nothing."""

    def binarise(self, weight: Tensor, num_bases: int = 1) -> BinaryWeight:
        """Latent weights and scales of ``num_bases`` branches."""
        branches = weight.unflatten(0, (num_bases, -1))
        latent = self.latent(branches)
        scale = self.scale(latent.detach()).expand(*branches.shape[:2], 1, 1, 1)
        negative = surrogate = None
        if has_state(self):
            negative = scale.detach() < 0
            scale = torch.where(negative, -scale, scale)  # abs() has gradient 0 at 0, so the scale would stay there
        if type(self).surrogate_gradient is not SignWeight.surrogate_gradient:
            surrogate = self.surrogate_gradient
        if negative is not None or surrogate is not None:
            latent = apply_function(_InFrontOfSign, latent, negative, surrogate)
        # A view of the weight shares its memory: nothing more is kept for the backward pass.
        latent = weight if latent is branches else latent.flatten(0, 1)
        return BinaryWeight(latent, scale.flatten().to(weight.dtype))

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        r"""Signs of the weights of ``num_bases`` branches, and their scales, ``(K*C_out,)``.

        If the products of a convolution with :math:`\alpha b` cancel, a rounding error remains, which may pass a ReLU.
        :math:`\alpha \operatorname{conv}(s, b)` is exactly zero there. Its gradient by b is :math:`\alpha` times the
        gradient by :math:`\alpha b`. The latent weights get the latter, so the gradient is divided by :math:`\alpha`.
        """
        latent, scale = self.binarise(weight, num_bases)
        return apply_function(_Signs, latent, scale.detach()), scale

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        """Binarises the weights of ``num_bases`` branches, folded into the first axis."""
        if type(self).signs is SignWeight.signs:
            return apply_function(_ScaledSigns, *self.binarise(weight, num_bases))
        signs, scale = checked_signs(self, weight, num_bases)
        return signs * scale.view(-1, 1, 1, 1)


def has_state(quantizer: nn.Module) -> bool:
    """Whether a quantizer has parameters or buffers."""
    return any(True for _ in chain(quantizer.parameters(), quantizer.buffers()))


def is_standard_weight(quantizer: nn.Module) -> bool:
    """Whether a weight quantizer computes the same as :class:`SignWeight`, with any scale, latent weights and surrogate
    gradient, so that lean training may replace it."""
    return isinstance(quantizer, SignWeight) and all(
        name not in quantizer.__dict__ and getattr(type(quantizer), name) is getattr(SignWeight, name)
        for name in ('forward', 'signs', 'binarise')
    )


def checked_signs(quantizer: SignWeight, weight: Tensor, num_bases: int) -> tuple[Tensor, Tensor]:
    """:meth:`SignWeight.signs` of a quantizer.

    Raises:
        UserError: If its own ``signs`` returns values other than -1 and +1.
    """
    signs, scale = quantizer.signs(weight, num_bases)
    is_own = type(quantizer).signs is not SignWeight.signs
    if is_own and not torch.compiler.is_compiling() and not bool((signs.detach().abs() == 1).all()):
        raise UserError(
            f'signs of {type(quantizer).__name__} are not all -1 or +1: return signs, or give it a forward that '
            'returns the weights'
        )
    return signs, scale


def start_quantizer(quantizer: SignWeight, weight: Tensor, num_bases: int) -> None:
    """Sets the first values of a quantizer, and refuses one that could not train.

    Args:
        quantizer: The quantizer.
        weight: The initial latent weights, ``(K*C_out, C_in/groups, kh, kw)``.
        num_bases: Number K of branches.

    Raises:
        UserError: If it has parameters that can get no gradient, or has no state and returns a negative scale.
    """
    weight = weight.detach()
    quantizer.start(weight, num_bases)
    if not is_standard_weight(quantizer):
        return
    with torch.enable_grad():
        latent, scale = quantizer.binarise(weight, num_bases)
        refuse_idle_parameters(quantizer, latent.sum() + scale.sum())
    has_values = type(scale.detach()) is Tensor and not scale.is_meta  # fake tensors have none
    if has_values and bool((scale < 0).any()):
        raise UserError(
            f'scale of {type(quantizer).__name__} is negative: return magnitudes (only a scale that is learned, or '
            'kept in a buffer, may flip signs)'
        )


@MODELS.register_module()
class TensorScaleWeight(SignWeight):
    r"""One scale per conv and branch, :math:`\alpha = \operatorname{mean}|w|`, as in Group-Net's released code."""

    def scale(self, latent: Tensor) -> Tensor:
        return latent.abs().mean(dim=(1, 2, 3, 4), keepdim=True)


@MODELS.register_module()
class ChannelScaleWeight(SignWeight):
    r"""One scale per output channel, :math:`\alpha_c = \operatorname{mean}|w_c|` (Rastegari et al., XNOR-Net, ECCV
    2016)."""

    def scale(self, latent: Tensor) -> Tensor:
        return latent.abs().mean(dim=(2, 3, 4), keepdim=True)


@MODELS.register_module()
class UnscaledWeight(SignWeight):
    r"""No scale, :math:`\alpha = 1`; the batch norm behind the conv scales instead."""

    def scale(self, latent: Tensor) -> Tensor:
        return latent.new_ones(())


@MODELS.register_module()
class LearnedScaleWeight(SignWeight):
    r"""One learned scale per output channel: :math:`\alpha_c` starts at :math:`\operatorname{mean}|w_c|`.

    .. math::
        \frac{\partial L}{\partial \alpha_c} = \sum_{i} \frac{\partial L}{\partial (\alpha_c b_{c,i})} b_{c,i}

    Args:
        num_channels: Folded output channels, ``K*C_out``; a binary conv passes it.

    Source: Martinez et al., Training Binary Neural Networks with Real-to-Binary Convolutions, ICLR 2020; Bulat and
    Tzimiropoulos, XNOR-Net++, BMVC 2019 (the case of one scale per channel).
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(num_channels))

    @torch.no_grad()
    def start(self, weight: Tensor, num_bases: int = 1) -> None:
        self.alpha.copy_(weight.abs().mean(dim=(1, 2, 3)))

    def scale(self, latent: Tensor) -> Tensor:
        return self.alpha.view(*latent.shape[:2], 1, 1, 1)


@MODELS.register_module()
class MagnitudeAwareWeight(ChannelScaleWeight):
    r"""One scale per output channel, and the magnitude-aware gradient of Bi-Real Net, which is scaled and clipped.

    .. math::
        \alpha_c = \operatorname{mean}|w_c|, \qquad
        \frac{\partial L}{\partial w} \approx \frac{\partial L}{\partial (\alpha_c b)} \, \alpha_c \, [|w| < 1]

    Source: Liu et al., Bi-Real Net, ECCV 2018, section 3.3 (magnitude-aware gradient with respect to weights; per
    output channel as in its released code).
    """

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return self.scale(latent) * (latent.abs() < 1)


@MODELS.register_module()
class BalancedWeight(ErrorDecay, SignWeight):
    r"""Balanced and standardised weights of IR-Net (Libra parameter binarisation), with its error decay estimator.

    The weights of each output channel lie around zero, so that about half of the signs are positive; the scale is a
    power of two.

    .. math::
        u = \frac{w - \operatorname{mean}(w_c)}{\operatorname{std}(w_c)}, \qquad
        \alpha_c = 2^{\operatorname{round}(\log_2 \operatorname{mean}|u_c|)}, \qquad
        \frac{\partial L}{\partial u} \approx \frac{\partial L}{\partial (\alpha_c b)} \, \alpha_c \, k t
        \bigl(1 - \tanh^2(t u)\bigr)

    The deviation is clamped to at least 1e-5. If all weights of a channel are equal, or it has only one, its scale is
    0.

    Args:
        t_min, t_max: Arguments of the estimator, see :class:`ErrorDecay`.

    Source: Qin et al., IR-Net, CVPR 2020, sections 3.2 and 3.3.
    """

    def latent(self, weight: Tensor) -> Tensor:
        deviation = weight.std(dim=(2, 3, 4), correction=0, keepdim=True)
        return (weight - weight.mean(dim=(2, 3, 4), keepdim=True)) / deviation.clamp(min=1e-5)

    def scale(self, latent: Tensor) -> Tensor:
        return latent.abs().mean(dim=(2, 3, 4), keepdim=True).log2().round().exp2()  # of 0 it is 0

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return self.scale(latent) * super().surrogate_gradient(latent)


@MODELS.register_module()
class RealWeight(nn.Module):
    """Real-valued weights, for the first stage of training (Group-Net's released recipe). Shape and values are kept."""

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        return weight
