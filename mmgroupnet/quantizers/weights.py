"""Binarisation of weights. A new scale is one class with a ``scale``, see docs/quantizers.md."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmgroupnet.quantizers.activations import binary_sign
from mmgroupnet.quantizers.error_decay import ErrorDecay
from mmgroupnet.registry import MODELS

Surrogate = Callable[[Tensor], Tensor]


class BinaryWeight(NamedTuple):
    """Weights ``scale * sign(latent)`` of K folded branches.

    Attributes:
        latent: What the sign sees, ``(K*C_out, C_in/groups, kh, kw)``.
        scale: ``(K*C_out,)``, not negative.
        surrogate: Stand-in for the gradient of the sign at ``latent``; None for 1, straight through.
    """

    latent: Tensor
    scale: Tensor
    surrogate: Surrogate | None


class _Signs(torch.autograd.Function):
    """Signs of the weights forwards; backwards the gradient divided by the scale, see :meth:`SignWeight.signs`."""

    @staticmethod
    def forward(latent: Tensor, scale: Tensor, surrogate: Surrogate | None) -> Tensor:
        return binary_sign(latent)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
        latent, scale, ctx.surrogate = inputs
        ctx.save_for_backward(None if ctx.surrogate is None else latent, scale)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        latent, scale = ctx.saved_tensors
        gradient = unscaled(grad_output, scale)
        return gradient if latent is None else gradient * ctx.surrogate(latent), None, None


def unscaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """The gradient of ``scale * signs``, ``(rows, ...)``, from that of the signs; 0 where the scale is 0."""
    scale = scale.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))
    return gradient / scale.clamp(min=torch.finfo(scale.dtype).tiny)


class _ScaledSigns(torch.autograd.Function):
    """``scale * sign(latent)``; the gradient passes to the latent weights as it is, or times the surrogate."""

    @staticmethod
    def forward(latent: Tensor, scale: Tensor, surrogate: Surrogate | None) -> Tensor:
        return binary_sign(latent) * scale.view(-1, 1, 1, 1)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
        latent, scale, ctx.surrogate = inputs
        needs_latent = ctx.surrogate is not None or ctx.needs_input_grad[1]
        ctx.save_for_backward(latent if needs_latent else None)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (latent,) = ctx.saved_tensors
        of_latent = grad_output if ctx.surrogate is None else grad_output * ctx.surrogate(latent)
        of_scale = (grad_output * binary_sign(latent)).sum((1, 2, 3)) if ctx.needs_input_grad[1] else None
        return of_latent, of_scale, None


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
        shape that broadcasts to it, the same for all inputs of an output channel. It is not negative, unless it is
        learned: a negative learned scale turns the signs of its channel."""

    def latent(self, weight: Tensor) -> Tensor:
        """What the sign sees of latent weights ``(K, C_out, C_in/groups, kh, kw)``, differentiable; by default the
        weights."""
        return weight

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        """Stand-in for the gradient of ``scale * sign(latent)`` at ``latent`` ``(K, C_out, C_in/groups, kh, kw)``; by
        default 1."""
        return torch.ones_like(latent)

    def start(self, weight: Tensor, num_bases: int = 1) -> None:
        """Gives learned parameters their first values, for the latent weights that training begins with; by default
        nothing."""

    def binarise(self, weight: Tensor, num_bases: int = 1) -> BinaryWeight:
        """Latent weights, scales and surrogate gradient of ``num_bases`` branches."""
        branches = weight.unflatten(0, (num_bases, -1))
        latent = self.latent(branches)
        scale = self.scale(latent.detach()).expand(*branches.shape[:2], 1, 1, 1).flatten()
        # The view of a weight is the weight: nothing more is kept for the backward pass.
        latent = weight if latent is branches else latent.flatten(0, 1)
        if any(True for _ in self.parameters()):  # a learned scale
            latent = latent * torch.where(scale.detach() < 0, -1.0, 1.0).to(latent.dtype).view(-1, 1, 1, 1)
            scale = scale.abs()
        return BinaryWeight(latent, scale.to(weight.dtype), self.surrogate_of(num_bases))

    def surrogate_of(self, num_bases: int) -> Surrogate | None:
        """The :meth:`surrogate_gradient` of folded branches; None for 1."""
        if type(self).surrogate_gradient is SignWeight.surrogate_gradient:
            return None

        def surrogate(latent: Tensor) -> Tensor:
            return self.surrogate_gradient(latent.unflatten(0, (num_bases, -1))).flatten(0, 1)

        return surrogate

    def scales(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        """The magnitudes of the weights of ``num_bases`` branches per folded output channel, ``(K*C_out,)``."""
        return self.binarise(weight, num_bases).scale

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        r"""Signs of the weights of ``num_bases`` branches, and their :meth:`scales`.

        A convolution with :math:`\alpha b` whose products cancel gives what is left of rounding, which a ReLU behind it
        takes for a sign. :math:`\alpha \operatorname{conv}(s, b)` is exactly zero there. Its gradient in b is
        :math:`\alpha` times that in :math:`\alpha b`, which the latent weights get: it is divided.
        """
        latent, scale, surrogate = self.binarise(weight, num_bases)
        return _Signs.apply(latent, scale.detach(), surrogate), scale

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        """Binarises the weights of ``num_bases`` branches, folded into the first axis."""
        return _ScaledSigns.apply(*self.binarise(weight, num_bases))


def is_standard_weight(quantizer: nn.Module) -> bool:
    """Whether a weight quantizer computes what :class:`SignWeight` says, with any scale, latent weights and surrogate
    gradient, so that lean training may do it in its place."""
    return isinstance(quantizer, SignWeight) and all(
        getattr(type(quantizer), name) is getattr(SignWeight, name) for name in ('forward', 'signs', 'binarise')
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
class MagnitudeAwareWeight(TensorScaleWeight):
    r"""One scale per conv and branch, and the magnitude-aware gradient of Bi-Real Net, which is scaled and clipped.

    .. math::
        \alpha = \operatorname{mean}|w|, \qquad
        \frac{\partial L}{\partial w} \approx \frac{\partial L}{\partial (\alpha b)} \, \alpha \, [|w| < 1]

    Source: Liu et al., Bi-Real Net, ECCV 2018, section 3.3 (magnitude-aware gradient with respect to weights).
    """

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return self.scale(latent) * (latent.abs() < 1)


@MODELS.register_module()
class BalancedWeight(ErrorDecay, SignWeight):
    r"""Balanced and standardised weights of IR-Net (Libra parameter binarisation), with its error decay estimator.

    Each output channel is standardised, so that half of its signs are positive; the scale is a power of two.

    .. math::
        u = \frac{w - \operatorname{mean}(w_c)}{\operatorname{std}(w_c)}, \qquad
        \alpha_c = 2^{\operatorname{round}(\log_2 \operatorname{mean}|u_c|)}, \qquad
        \frac{\partial L}{\partial u} \approx \frac{\partial L}{\partial (\alpha b)} \, \alpha \, k t
        \bigl(1 - \tanh^2(t u)\bigr)

    Args:
        t_min, t_max: Of the estimator, see :class:`ErrorDecay`.

    Source: Qin et al., IR-Net, CVPR 2020, sections 3.2 and 3.3.
    """

    def latent(self, weight: Tensor) -> Tensor:
        centred = weight - weight.mean(dim=(2, 3, 4), keepdim=True)
        # A channel of one constant has no deviation: its signs are those of zeros.
        deviation = centred.square().mean(dim=(2, 3, 4), keepdim=True)
        return centred * (deviation + torch.finfo(weight.dtype).tiny).rsqrt()

    def scale(self, latent: Tensor) -> Tensor:
        magnitude = latent.abs().mean(dim=(2, 3, 4), keepdim=True)
        return torch.where(magnitude > 0, magnitude.log2().round().exp2(), 0.0)

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return self.scale(latent) * super().surrogate_gradient(latent)


@MODELS.register_module()
class RealWeight(nn.Module):
    """Real-valued weights, for the first stage of training (Group-Net's released recipe). Shape and values are kept."""

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        return weight
