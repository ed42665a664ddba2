"""Binarisation of weights. A new scale is one class with a ``scale``."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmgroupnet.quantizers.activations import binary_sign
from mmgroupnet.registry import MODELS


class _StraightThrough(torch.autograd.Function):
    """The quantized weight forwards, the identity to the latent weight backwards."""

    @staticmethod
    def forward(ctx: FunctionCtx, latent: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(latent)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class _ScaledSigns(torch.autograd.Function):
    """Signs of the weights forwards; backwards the gradient divided by the scale, see :meth:`SignWeight.signs`."""

    @staticmethod
    def forward(ctx: FunctionCtx, latent: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return binary_sign(latent)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        # A scale of zero has a gradient of zero here.
        return grad_output / scale.clamp(min=torch.finfo(scale.dtype).tiny), None


class SignWeight(nn.Module, ABC):
    r"""Binarised weights :math:`\alpha \operatorname{sign}(w)`; the gradient passes to the latent weights as it is, and
    they are not clipped.

    Shape: latent weights of ``num_bases`` folded branches, ``(K*C_out, C_in/groups, kh, kw)``, kept.
    """

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        r"""The scale :math:`\alpha` of latent weights ``(K, C_out, C_in/groups, kh, kw)``, in a shape that broadcasts
        to theirs. It is not negative, and the same for all inputs of an output channel."""

    @torch.no_grad()
    def scales(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        """The scale of the weights of ``num_bases`` branches per folded output channel, ``(K*C_out,)``."""
        branches = weight.unflatten(0, (num_bases, -1))
        return self.scale(branches).expand(*branches.shape[:2], 1, 1, 1).flatten()

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        r"""Signs of the weights of ``num_bases`` branches, and their :meth:`scales`.

        A convolution with :math:`\alpha b` whose products cancel gives what is left of rounding, which a ReLU behind it
        takes for a sign. :math:`\alpha \operatorname{conv}(s, b)` is exactly zero there. Its gradient in b is
        :math:`\alpha` times that in :math:`\alpha b`, which the latent weights get: it is divided.
        """
        scale = self.scales(weight, num_bases)
        return _ScaledSigns.apply(weight, scale.view(-1, 1, 1, 1)), scale

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        """Binarises the weights of ``num_bases`` branches, folded into the first axis."""
        with torch.no_grad():
            branches = weight.unflatten(0, (num_bases, -1))
            quantized = binary_sign(branches).mul_(self.scale(branches))
        return _StraightThrough.apply(weight, quantized)


@MODELS.register_module()
class TensorScaleWeight(SignWeight):
    r"""One scale per conv and branch, :math:`\alpha = \operatorname{mean}|w|`, as in Group-Net's released code."""

    def scale(self, weight: Tensor) -> Tensor:
        return weight.abs().mean(dim=(1, 2, 3, 4), keepdim=True)


@MODELS.register_module()
class ChannelScaleWeight(SignWeight):
    r"""One scale per output channel, :math:`\alpha_c = \operatorname{mean}|w_c|` (Rastegari et al., XNOR-Net, ECCV
    2016)."""

    def scale(self, weight: Tensor) -> Tensor:
        return weight.abs().mean(dim=(2, 3, 4), keepdim=True)


@MODELS.register_module()
class UnscaledWeight(SignWeight):
    r"""No scale, :math:`\alpha = 1`; the batch norm behind the conv takes its part."""

    def scale(self, weight: Tensor) -> Tensor:
        return weight.new_ones(())


@MODELS.register_module()
class RealWeight(nn.Module):
    """Real-valued weights, for the first stage of training (Group-Net's released recipe). Shape and values are kept."""

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        return weight
