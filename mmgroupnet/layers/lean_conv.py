"""Memory-lean autograd of a binary convolution: the same gradients as plain autograd's, a fraction of its memory.

Plain autograd keeps the signs as padded floats and copies of the binarised weights. Both can be derived from the input
and the latent weights, which are there anyway.

A convolution of signs s that are padded with v is one of s - v that are padded with zero, plus v times the sum of the
weights: no padded copy is made. Its gradient in the weights is likewise that of the convolution of s - v, plus v times
the sum of the gradient over all pixels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mmgroupnet.layers.branches import share, split
from mmgroupnet.ops import training
from mmgroupnet.quantizers import PolynomialSign, ShiftedSign, SignActivation, SignWeight, is_plain_sign

# Gives the gradient of a branch of a conv's scaled output, (N, C_out, H', W'), and its sum over all pixels, (C_out,).
# If the second argument is true, it may lie where that of the last branch lay.
GradientOf = Callable[[int, bool], tuple[Tensor, Tensor]]


def supports_conv(conv: nn.Module) -> bool:
    """Whether a binary conv can run lean: it does so unless its signs or weights are of somebody else's making, or
    somebody listens to its parts."""
    return (
        conv.memory_efficient
        and torch.is_grad_enabled()
        and is_plain_sign(conv.activation)
        and isinstance(conv.weight_quantizer, SignWeight)
        and not has_listeners(conv)
    )


def has_listeners(module: nn.Module) -> bool:
    """Whether a part of a module has forward hooks, which want it to be called."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules() if part is not module)


class SignConv:
    """Forward and backward pass of a binary conv without autograd.

    Args:
        conv: The conv.
        branches: Folded branches of its input; for a conv that K branches share K, else the conv's own.
    """

    def __init__(self, conv: nn.Module, branches: int) -> None:
        self.conv = conv
        self.branches = branches
        self.is_shared = branches != conv.num_folded

    @property
    def parameters(self) -> list[Tensor]:
        """What it is differentiated by: latent weights, shifts of the signs, scales of merged bases."""
        conv = self.conv
        shift = [conv.activation.shift] if isinstance(conv.activation, ShiftedSign) else []
        return [conv.weight, *shift, *(conv.merge.parameters() if conv.is_merged else ())]

    def scale(self, like: Tensor) -> Tensor:
        """The scale of the integers, per folded channel of the output."""
        conv = self.conv
        if conv.is_merged:
            return like.new_ones(self.branches * conv.out_channels)
        scale = conv.weight_quantizer.scales(conv.weight, conv.num_bases)
        return (scale.repeat(self.branches) if self.is_shared else scale).to(like.dtype)

    def shifted(self, x: Tensor) -> Tensor:
        """What the sign sees."""
        activation = self.conv.activation
        if not isinstance(activation, ShiftedSign):
            return x
        shift = activation.shift.detach().view(-1, 1, 1).to(x.dtype)
        return x + (shift.repeat(self.branches, 1, 1) if self.is_shared else shift)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, K*C_in, H, W)`` to the integers ``(N, K*C_out, H', W')``, int16 where they fit; of merged bases, whose
        scales differ, to floats."""
        conv, z = self.conv, self.shifted(x.detach())
        geometry = conv.geometry(is_shared=self.is_shared)
        fits = not conv.is_merged and geometry.row_bits <= training.MAX_LENGTH
        if fits and training.uses_kernels(z) and training.uses_kernels(conv.weight):
            return training.convolve(z, conv.weight, geometry)
        signs = torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
        if conv.is_merged:
            weight = conv.effective_weight().detach()
        else:
            weight = torch.where(conv.weight.detach() >= 0, 1.0, -1.0).to(z.dtype)
        y = share(lambda part: conv.convolve(part, weight), signs, self.branches // conv.num_folded)
        # Half precision is no larger, and not exact: what autocast rounded stays as it is. Convolutions by Winograd's
        # transform are next to the integers.
        return y.round_().to(torch.int16) if fits and y.dtype in (torch.float32, torch.float64) else y

    def backward(
        self,
        gradient_of: GradientOf,
        x: Tensor,
        scale: Tensor,
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of :attr:`parameters`; one branch after the other, so that
        what is derived anew is never there for all of them.

        Args:
            gradient_of: See :data:`GradientOf`.
            x: The input.
            scale: The scale of the integers, see :meth:`scale`.
            residual: Added to the gradient of the input.
            needs_x: Whether the input needs one.
            needed: Which of the parameters do.
        """
        conv, z = self.conv, self.shifted(x.detach())
        is_shifted = isinstance(conv.activation, ShiftedSign)
        needs_weight, needs_x = any(needed), needs_x or any(needed[1:])
        merged = None
        if conv.is_merged:
            with torch.enable_grad():
                merged = conv.effective_weight()
        latent = conv.weight.detach()
        weight_gradient = torch.empty_like(latent if merged is None else merged) if needs_weight else None
        # A shift wants the gradient without the residual.
        sign_gradient = _SignGradient(conv.activation, z, None if is_shifted else residual, self.branches)
        # Branches that share their weights are one batch.
        batches = [range(self.branches)] if self.is_shared else [(k,) for k in range(self.branches)]
        for index, (batch, rate) in enumerate(zip(batches, conv.branch_dilations(), strict=False)):
            at = slice(index * conv.out_channels, (index + 1) * conv.out_channels)
            weight = training.scaled_signs(latent[at], scale[at]) if merged is None else merged.detach()
            gradients, totals = zip(*(gradient_of(k, len(batch) == 1) for k in batch), strict=True)
            gradient = _cat(gradients)
            signs = _cat([training.padded_signs(z, conv.padding_value, k, self.branches) for k in batch])
            of_signs, of_weight = self._convolution_backward(
                gradient, signs.to(gradient.dtype), weight.to(gradient.dtype), rate, needs_x, needs_weight
            )
            if needs_weight:
                of_padding = sum(totals).to(of_weight.dtype).view(-1, 1, 1, 1)
                torch.add(of_weight, of_padding, alpha=conv.padding_value, out=weight_gradient[at])
            if needs_x:
                for k, part in zip(batch, of_signs.chunk(len(batch)), strict=True):
                    sign_gradient.add(k, part)
        parameter_gradients = self._parameter_gradients(merged, weight_gradient)
        x_gradient = z_gradient = sign_gradient.result() if needs_x else None
        if is_shifted:
            if needs_x:
                x_gradient = z_gradient if residual is None else z_gradient + residual
                z_gradient = z_gradient.sum((0, 2, 3)).view(-1, len(conv.activation.shift)).sum(0)
            parameter_gradients.insert(1, z_gradient)
        return x_gradient, parameter_gradients

    def _convolution_backward(
        self, gradient: Tensor, signs: Tensor, weight: Tensor, rate: int, needs_x: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a convolution that is padded with zeros, in its input and in its weight."""
        conv = self.conv
        pixels = gradient.shape[0] * gradient.shape[2] * gradient.shape[3]
        of_weight = None
        is_small = gradient.device.type == 'cpu' and pixels < signs.shape[1] and conv.groups == 1
        if is_small and needs_weight and conv.kernel_size != (1, 1):
            # Where there are fewer pixels than channels, a matrix product is up to three times faster than oneDNN.
            columns = F.unfold(signs, conv.kernel_size, rate, conv.padding_of(rate), conv.stride)
            columns = columns.transpose(0, 1).flatten(1)
            of_weight = (gradient.transpose(0, 1).flatten(1) @ columns.t()).view_as(weight)
            needs_weight = False
        if is_small or (conv.kernel_size == (1, 1) and conv.stride != (1, 1)):
            # So is oneDNN without channels_last; and with it, it (3.12) writes beyond the gradient of strided 1x1
            # weights of few channels.
            gradient, signs = gradient.contiguous(), signs.contiguous()
        of_signs, found, _ = torch.ops.aten.convolution_backward(
            gradient,
            signs,
            weight,
            None,
            conv.stride,
            conv.padding_of(rate),
            (rate, rate),
            False,
            (0, 0),
            conv.groups,
            (needs_x, needs_weight, False),
        )
        return of_signs, found if of_weight is None else of_weight

    def _parameter_gradients(self, merged: Tensor | None, gradient: Tensor | None) -> list[Tensor | None]:
        conv = self.conv
        if merged is None:
            return [gradient]  # straight through
        parameters = [conv.weight, *conv.merge.parameters()]
        if gradient is None or not merged.requires_grad:
            return [None] * len(parameters)
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        found = iter(torch.autograd.grad(merged, wanted, gradient))
        return [next(found) if parameter.requires_grad else None for parameter in parameters]


class _SignGradient:
    """Gradient of a sign's input from those of its branches.

    Args:
        activation: The sign.
        z: Its input.
        residual: Added to the gradient.
        branches: Number K.
    """

    def __init__(self, activation: SignActivation, z: Tensor, residual: Tensor | None, branches: int) -> None:
        self.surrogate = type(activation).surrogate_gradient
        self.uses_kernels = self.surrogate is PolynomialSign.surrogate_gradient and training.uses_kernels(z)
        self.branches = branches
        self.z, self.residual = z, residual
        if self.uses_kernels:
            last = torch.channels_last
            self.z = z.contiguous(memory_format=last)
            self.residual = None if residual is None else residual.float().contiguous(memory_format=last)
            self.out = torch.empty_like(self.z)
        self.parts: list[Tensor] = []

    def add(self, k: int, gradient: Tensor) -> None:
        """Takes the gradient of the signs of branch k, in the order of the branches."""
        if self.uses_kernels:
            training.add_polynomial_sign_gradient(gradient, self.z, self.residual, k, self.branches, self.out)
            return
        self.parts.append(self.surrogate(split(self.z, self.branches)[k]) * gradient.to(self.z.dtype))

    def result(self) -> Tensor:
        """The gradient of all branches."""
        if self.uses_kernels:
            return self.out
        out = torch.cat(self.parts, dim=1)
        return out if self.residual is None else out + self.residual


def _cat(maps: Sequence[Tensor]) -> Tensor:
    """Maps as one batch, without a copy of a single one."""
    return maps[0] if len(maps) == 1 else torch.cat(tuple(maps))


class _ConvFunction(torch.autograd.Function):
    """One binary conv, which keeps nothing but its input."""

    @staticmethod
    def forward(ctx: FunctionCtx, conv: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.sign_conv = SignConv(conv, conv.num_folded)
        scale = ctx.sign_conv.scale(x)
        ctx.save_for_backward(x, scale, *parameters)
        y = ctx.sign_conv.forward(x)
        if conv.is_merged:
            return y
        return y.to(x.dtype).mul_(scale.view(-1, 1, 1)).to(autocast_dtype(x) or x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *_ = ctx.saved_tensors
        _, needs_x, *needed = ctx.needs_input_grad
        branches = split(gradient, ctx.sign_conv.branches)

        def gradient_of(k: int, reuse: bool) -> tuple[Tensor, Tensor]:
            return branches[k], branches[k].sum((0, 2, 3))

        x_gradient, parameter_gradients = ctx.sign_conv.backward(gradient_of, x, scale, None, needs_x, needed)
        return None, x_gradient, *only_needed(parameter_gradients, needed)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would convolve in; None where it is not on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def only_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Without those that nobody asked for."""
    return [gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True)]


# torch.compile runs it as it is: its kernels take addresses, which tensors that are traced do not have.
@torch.compiler.disable
def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A binary conv without its bias, lean; see :func:`supports_conv`."""
    return _ConvFunction.apply(conv, x, *SignConv(conv, conv.num_folded).parameters)
