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
    """Weights ``scale * sign(latent)`` of K folded branches, whose gradient passes to ``latent`` as it is.

    Attributes:
        latent: What the sign sees, ``(K*C_out, C_in/groups, kh, kw)``.
        scale: ``(K*C_out,)``, not negative.
    """

    latent: Tensor
    scale: Tensor


class _InFrontOfSign(torch.autograd.Function):
    """The identity, but for channels of negative scale: they get the opposite signs. Backwards the gradient times the
    surrogate gradient, and turned in the same channels."""

    @staticmethod
    def forward(latent: Tensor, negative: Tensor | None, surrogate: Surrogate | None) -> Tensor:
        # The sign of -0 is that of 0: it is the sign that is turned.
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
    """Signs of the weights forwards; backwards the gradient divided by the scale, see :meth:`SignWeight.signs`."""

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
    """Factor from the gradient of signs, which is 0 where the scale is 0, to that of ``scale * signs``; finite."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny).reciprocal()


class _ScaledSigns(torch.autograd.Function):
    """``scale * sign(latent)``; the gradient passes to ``latent`` as it is."""

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
    r"""Binarised weights :math:`\alpha \operatorname{sign}(u(w))`; the gradient passes to :math:`u` as it is (straight
    through), and latent weights are not clipped.

    A subclass defines :meth:`scale`, and, where it differs, :meth:`latent` (:math:`u`, by default :math:`w`) and
    :meth:`surrogate_gradient`. Lean training and packing honour all three. The scale takes gradients to the parameters
    of the quantizer, not to the weights. A subclass with a ``forward`` or ``signs`` of its own trains plain; it is
    packed where its weights have one magnitude per output channel.

    Shape: latent weights of ``num_bases`` folded branches, ``(K*C_out, C_in/groups, kh, kw)``, kept.
    """

    @abstractmethod
    def scale(self, latent: Tensor) -> Tensor:
        r"""The scale :math:`\alpha` of what the sign sees, ``(K, C_out, C_in/groups, kh, kw)`` without gradient, in a
        shape that broadcasts to ``(K, C_out, 1, 1, 1)``. Only a quantizer with parameters or buffers may give negative
        ones: they turn the signs of their channels."""

    def latent(self, weight: Tensor) -> Tensor:
        """What the sign sees of latent weights ``(K, C_out, C_in/groups, kh, kw)``, differentiable; by default the
        weights."""
        return weight

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        """Stand-in for the gradient of ``|scale| * sign(latent)`` at ``latent`` ``(K, C_out, C_in/groups, kh, kw)``; by
        default 1. It may read the module's state, as :meth:`SignActivation.surrogate_gradient` may."""
        return torch.ones_like(latent)

    def start(self, weight: Tensor, num_bases: int = 1) -> None:
        """Gives learned parameters their first values, for the latent weights that training begins with; by default
        nothing."""

    def binarise(self, weight: Tensor, num_bases: int = 1) -> BinaryWeight:
        """Latent weights and scales of ``num_bases`` branches."""
        branches = weight.unflatten(0, (num_bases, -1))
        latent = self.latent(branches)
        scale = self.scale(latent.detach()).expand(*branches.shape[:2], 1, 1, 1)
        negative = surrogate = None
        if has_state(self):
            negative = scale.detach() < 0
            scale = torch.where(negative, -scale, scale)  # abs() has no gradient at 0, and would stay there
        if type(self).surrogate_gradient is not SignWeight.surrogate_gradient:
            surrogate = self.surrogate_gradient
        if negative is not None or surrogate is not None:
            latent = apply_function(_InFrontOfSign, latent, negative, surrogate)
        # The view of a weight is the weight: nothing more is kept for the backward pass.
        latent = weight if latent is branches else latent.flatten(0, 1)
        return BinaryWeight(latent, scale.flatten().to(weight.dtype))

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        r"""Signs of the weights of ``num_bases`` branches, and their scales, ``(K*C_out,)``.

        A convolution with :math:`\alpha b` whose products cancel gives what is left of rounding, which a ReLU behind it
        takes for a sign. :math:`\alpha \operatorname{conv}(s, b)` is exactly zero there. Its gradient in b is
        :math:`\alpha` times that in :math:`\alpha b`, which the latent weights get: it is divided.
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
    """Whether a weight quantizer computes what :class:`SignWeight` says, with any scale, latent weights and surrogate
    gradient, so that lean training may do it in its place."""
    return isinstance(quantizer, SignWeight) and all(
        name not in quantizer.__dict__ and getattr(type(quantizer), name) is getattr(SignWeight, name)
        for name in ('forward', 'signs', 'binarise')
    )


def checked_signs(quantizer: SignWeight, weight: Tensor, num_bases: int) -> tuple[Tensor, Tensor]:
    """:meth:`SignWeight.signs` of a quantizer.

    Raises:
        UserError: If it has signs of its own, and they are not all -1 or +1.
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
    """Gives a quantizer its first values, and refuses one that could not train as it is written.

    Args:
        quantizer: The quantizer.
        weight: The latent weights that training begins with, ``(K*C_out, C_in/groups, kh, kw)``.
        num_bases: Number K of branches.

    Raises:
        UserError: If it has parameters that can get no gradient, or is without state and gives a negative scale.
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
            'kept in a buffer, may turn signs)'
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
    r"""No scale, :math:`\alpha = 1`; the batch norm behind the conv takes its part."""

    def scale(self, latent: Tensor) -> Tensor:
        return latent.new_ones(())


@MODELS.register_module()
class LearnedScaleWeight(SignWeight):
    r"""One learned scale per output channel, which gradients move: :math:`\alpha_c` starts at
    :math:`\operatorname{mean}|w_c|`.

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

    The deviation counts as at least 1e-5. Equal weights, the only one of a channel as well, have scale 0.

    Args:
        t_min, t_max: Of the estimator, see :class:`ErrorDecay`.

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
