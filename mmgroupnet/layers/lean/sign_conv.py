"""Memory-lean autograd of a binary convolution: the same gradients as plain autograd's, a fraction of its memory.

Plain autograd keeps the signs as padded floats and copies of the binarised weights. Both can be derived from the input
and the latent weights, which are there anyway.

A convolution of signs s that are padded with v is one of s - v that are padded with zero, plus v times the sum of the
weights: no padded copy is made. Its gradient in the weights is likewise that of the convolution of s - v, plus v times
the sum of the gradient over all pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmgroupnet.layers.branches import share, split
from mmgroupnet.layers.lean.path import find_hooks, first_derivatives, run_plain_for_hooks, wants_gradient
from mmgroupnet.layers.observers import SignObserver, notify
from mmgroupnet.ops import UnitGeometry
from mmgroupnet.ops.float_convolution import convolve_signs, is_strided_pointwise
from mmgroupnet.ops.passes import BranchGradient, Passes, autocast_dtype, choose_passes, wide, without_autocast
from mmgroupnet.ops.passes.torch_passes import MAX_LENGTH
from mmgroupnet.quantizers import (
    PolynomialSign,
    Surrogate,
    binary_sign,
    has_state,
    is_standard_sign,
    is_standard_weight,
    unscaled,
)


class ConvOperands(NamedTuple):
    """What the output of a binary conv is differentiated by, besides its input.

    Attributes:
        weight: What the signs of the weights are taken of, ``(K*C_out, C_in/groups, kh, kw)``; straight through.
        scale: Magnitudes of the weights, ``(K*C_out,)``, not negative.
        shift: Added to the input in front of its sign, ``(K*C_in,)``; None for nothing.
        merge_scales: Learned scales of merged bases, ``(K,)``; None for their mean, and where bases are not merged.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor | None
    merge_scales: Tensor | None


class BinaryConv(Protocol):
    """What a binary conv offers to lean training; :class:`mmgroupnet.layers.BinaryConv2d` does.

    Attributes:
        activation: Its activation quantizer.
        weight_quantizer: Its weight quantizer.
        memory_efficient: Whether it may run lean.
        num_folded: Branches that are folded into its channels.
        sign_observer: Watches its signs; None for nothing.
    """

    activation: nn.Module
    weight_quantizer: nn.Module
    memory_efficient: bool
    num_folded: int
    sign_observer: SignObserver | None

    def geometry(self, is_shared: bool = False) -> UnitGeometry:
        """Its shape parameters; ``is_shared`` where K branches share a conv of one."""

    def operands(self) -> ConvOperands:
        """Its tensors, made of its parameters by autograd."""

    def bypassed_parts(self) -> Sequence[nn.Module]:
        """The modules whose work lean training does in their place."""


def has_standard_quantizers(conv: BinaryConv) -> bool:
    """Whether a conv may run lean: it wants to, and its quantizers compute what their base classes say."""
    return (
        conv.memory_efficient and is_standard_sign(conv.activation) and is_standard_weight(conv.weight_quantizer)
    )


def can_run_conv(conv: BinaryConv, x: Tensor) -> bool:
    """Whether a binary conv runs lean on an input, see :mod:`mmgroupnet.layers.lean.path`."""
    if not wants_gradient([x, *conv.parameters()]) or not has_standard_quantizers(conv):
        return False
    hooked = next((part for part in conv.bypassed_parts() if find_hooks(part) is not None), None)
    if hooked is not None:
        run_plain_for_hooks(conv, type(hooked).__name__, is_synchronised=False)
    return hooked is None


class SignConv:
    """Forward and backward pass of a binary conv without autograd: numbers and functions, taken of the conv once.

    Args:
        conv: The conv.
        branches: Folded branches of its input; for a conv that K branches share K, else the conv's own.
        passes: The backend.
    """

    def __init__(self, conv: BinaryConv, branches: int, passes: Passes) -> None:
        self.is_shared = branches != conv.num_folded
        self.geometry = conv.geometry(is_shared=self.is_shared)
        self.branches = branches
        surrogate = conv.activation.surrogate_gradient
        self.surrogate = None if surrogate is PolynomialSign.surrogate_gradient else surrogate
        # Per channel, perhaps: its input has the channels of all branches.
        self.surrogate_has_state = has_state(conv.activation)
        # Merged bases, whose scales differ, and long sums give floats.
        self.gives_integers = not self.geometry.merges and self.geometry.row_bits <= MAX_LENGTH
        self.passes = passes

    def output_scale(self, operands: ConvOperands) -> Tensor:
        """The scale of what :meth:`forward` gives, per channel of the conv's weights; 1 where it is in there."""
        return torch.ones_like(operands.scale[: self.geometry.out_channels]) if self.geometry.merges else operands.scale

    def _shifted(self, x: Tensor, operands: ConvOperands) -> Tensor:
        """What the sign sees."""
        if operands.shift is None:
            return x
        shift = operands.shift.detach().to(x.dtype)
        return x + (shift.repeat(self.branches) if self.is_shared else shift).view(-1, 1, 1)

    def _bases(self, operands: ConvOperands) -> tuple[Tensor, Tensor]:
        """Signs of merged bases and their scales, ``(K, C_out, C_in/groups, kh, kw)`` and ``(K, C_out, 1, 1, 1)``."""
        num_bases = self.geometry.num_bases
        signs = binary_sign(operands.weight.detach()).unflatten(0, (num_bases, -1))
        return signs, operands.scale.detach().view(num_bases, -1, 1, 1, 1)

    def _merged(self, operands: ConvOperands) -> Tensor:
        """The merged weights, rounded as those of plain training: a sum that cancels passes a ReLU or does not."""
        signs, scale = self._bases(operands)
        bases = signs * scale
        if operands.merge_scales is None:
            return bases.mean(0)
        return (bases * operands.merge_scales.detach().view(-1, 1, 1, 1, 1)).sum(0)

    def forward(self, x: Tensor, operands: ConvOperands, observed: nn.Module | None = None) -> Tensor:
        """``(N, K*C_in, H, W)`` to the integers ``(N, K*C_out, H', W')``; of merged bases to floats.

        Args:
            x: The input, as the passes prepared it.
            operands: The conv's tensors.
            observed: The conv, where its observer is to see the signs. Default: None.
        """
        z = self._shifted(x, operands)
        if observed is not None and observed.sign_observer is not None:
            # A conv that branches share sees them as batch.
            positive = z >= 0
            notify(observed, share(lambda part: part, positive, self.branches) if self.is_shared else positive)
        if self.geometry.merges:
            dtype = self.passes.dtype
            return convolve_signs(self.geometry, binary_sign(z).to(dtype), self._merged(operands).to(dtype))
        return self.passes.convolve(z, operands.weight.detach(), self.geometry)

    def backward(
        self,
        gradient_of: BranchGradient,
        x: Tensor,
        operands: ConvOperands,
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of the operands but the scale of what is not merged, which
        belongs to what follows the conv. One branch after the other, so that what is derived anew is never there for
        all of them.

        Args:
            gradient_of: Gives the gradient of what :meth:`forward` gave.
            x: The input.
            operands: The conv's tensors.
            residual: Added to the gradient of the input.
            needs_x: Whether the input needs one.
            needed: Which of the operands do.
        """
        geometry, z = self.geometry, self._shifted(x, operands)
        needs_weight, needs_scale, needs_shift, needs_merge = needed
        needs_weight = needs_weight or (geometry.merges and (needs_scale or needs_merge))
        needs_x = needs_x or needs_shift
        weight = self._merged(operands) if geometry.merges else operands.weight.detach()
        weight_gradient = torch.empty_like(weight) if needs_weight else None
        residual = None if residual is None else self.passes.prepare(residual)
        # A shift wants the gradient without the residual.
        added = residual if operands.shift is None else None
        z_gradient = torch.empty_like(z) if needs_x else None
        surrogate_of = self._surrogates(z) if needs_x else None
        # Branches that share their weights are one batch.
        batches = [range(self.branches)] if self.is_shared else [(k,) for k in range(self.branches)]
        for index, batch in enumerate(batches):
            at = slice(index * geometry.out_channels, (index + 1) * geometry.out_channels)
            part = weight[at] if geometry.merges else binary_sign(weight[at])
            gradients, totals = zip(*(gradient_of(k, len(batch) == 1) for k in batch), strict=True)
            gradient = _cat(gradients).to(self.passes.dtype)
            signs = _cat([self.passes.padded_signs(z, geometry.padding_value, k, self.branches) for k in batch])
            of_signs, of_weight = self._convolution_backward(
                gradient, signs.to(gradient.dtype), part.to(gradient.dtype), index, needs_x, needs_weight
            )
            if needs_weight:
                of_weight = of_weight.to(weight.dtype)
                of_padding = sum(totals).to(weight.dtype).view(-1, 1, 1, 1)
                torch.add(of_weight, of_padding, alpha=geometry.padding_value, out=weight_gradient[at])
            if needs_x:
                for k, found in zip(batch, of_signs.chunk(len(batch)), strict=True):
                    self.passes.sign_gradient(found, z, added, k, self.branches, z_gradient, surrogate_of(k))
        of_shift = None
        if needs_shift:
            sums = z_gradient.sum((0, 2, 3), dtype=torch.float64)
            of_shift = sums.view(-1, len(operands.shift)).sum(0).to(operands.shift.dtype)
        if needs_x and residual is not added:
            z_gradient = z_gradient + residual
        of_weight, of_scale, of_merge = self._operand_gradients(operands, weight_gradient)
        return z_gradient, [of_weight, of_scale, of_shift, of_merge]

    def _surrogates(self, z: Tensor) -> Callable[[int], Surrogate | None]:
        """The surrogate gradient of each branch; None for that of ``PolynomialSign``."""
        if self.surrogate is None or self.is_shared or not self.surrogate_has_state:
            return lambda k: self.surrogate
        found = split(self.surrogate(z.to(wide(z.dtype))), self.branches)
        return lambda k: lambda x: found[k]

    def _convolution_backward(
        self, gradient: Tensor, signs: Tensor, weight: Tensor, base: int, needs_x: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a convolution that is padded with zeros, in its input and in its weight."""
        geometry = self.geometry
        kernel_size, stride, groups = geometry.kernel_size, geometry.stride, geometry.groups
        padding, rate = geometry.pad_of(base), geometry.dilations[base]
        pixels = gradient.shape[0] * gradient.shape[2] * gradient.shape[3]
        if pixels == 0:
            return torch.zeros_like(signs), torch.zeros_like(weight)
        of_weight = None
        is_small = gradient.device.type == 'cpu' and pixels < signs.shape[1] and groups == 1
        if is_small and needs_weight and kernel_size != (1, 1):
            # Where there are fewer pixels than channels, a matrix product is up to three times faster than oneDNN.
            columns = F.unfold(signs, kernel_size, rate, padding, stride)
            columns = columns.transpose(0, 1).flatten(1)
            of_weight = (gradient.transpose(0, 1).flatten(1) @ columns.t()).view_as(weight)
            needs_weight = False
        if is_small or (is_strided_pointwise(geometry) and gradient.device.type == 'cpu'):
            gradient, signs = gradient.contiguous(), signs.contiguous()  # faster so, too, where there are few pixels
        of_signs, found, _ = torch.ops.aten.convolution_backward(
            gradient,
            signs,
            weight,
            None,
            stride,
            padding,
            (rate, rate),
            False,
            (0, 0),
            groups,
            (needs_x, needs_weight, False),
        )
        return of_signs, found if of_weight is None else of_weight

    def _operand_gradients(
        self, operands: ConvOperands, gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of weight, scale and merge scales from that of the signs of the weights, or of the merged
        weights ``sum_k merge_scales[k] * scale[k] * sign(weight[k])``."""
        if gradient is None:
            return None, None, None
        if not self.geometry.merges:
            return unscaled(gradient, operands.scale), None, None
        signs, scale = self._bases(operands)
        if operands.merge_scales is None:
            merge_scales = gradient.new_full((len(signs),), 1 / len(signs))
        else:
            merge_scales = operands.merge_scales.detach().to(gradient.dtype)
        of_weight = torch.cat([gradient * merge_scale for merge_scale in merge_scales])
        # Of each base and channel the sum of gradient times signs.
        sums = torch.stack([(gradient * base).sum((1, 2, 3)) for base in signs])
        of_scale = (sums * merge_scales.view(-1, 1)).flatten()
        of_merge = (sums * scale.view_as(sums)).sum(1)
        return of_weight, of_scale, of_merge


def _cat(maps: Sequence[Tensor]) -> Tensor:
    """Maps as one batch, without a copy of a single one."""
    return maps[0] if len(maps) == 1 else torch.cat(tuple(maps))


class _ConvFunction(torch.autograd.Function):
    """One binary conv, which keeps nothing but its input."""

    @staticmethod
    def forward(ctx: FunctionCtx, conv: BinaryConv, x: Tensor, *tensors: Tensor | None) -> Tensor:
        operands = ConvOperands(*tensors)
        out_dtype = autocast_dtype(x) or x.dtype
        ctx.sign_conv = SignConv(conv, conv.num_folded, choose_passes(x, operands.weight, str(conv)))
        ctx.save_for_backward(x, *operands)
        with without_autocast(x.device):
            y = ctx.sign_conv.forward(ctx.sign_conv.passes.prepare(x), operands, observed=conv)
            if not ctx.sign_conv.geometry.merges:
                y = y.to(wide(out_dtype)).mul_(operands.scale.to(wide(out_dtype)).view(-1, 1, 1))
            return y.to(out_dtype)

    @staticmethod
    @first_derivatives
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operands, sign_conv = ConvOperands(*tensors), ctx.sign_conv
        passes = sign_conv.passes
        _, needs_x, *needed = ctx.needs_input_grad
        prepared = passes.prepare(x)
        gradient = passes.prepare(gradient)
        branches = split(gradient, sign_conv.branches)
        scales = sign_conv.output_scale(operands).to(gradient.dtype).view(-1, 1, 1).chunk(sign_conv.branches)

        def gradient_of(k: int, reuse: bool) -> tuple[Tensor, Tensor]:
            branch = branches[k] if sign_conv.geometry.merges else branches[k] * scales[k]
            return branch, branch.sum((0, 2, 3), dtype=torch.promote_types(branch.dtype, torch.float32))

        with without_autocast(x.device):
            x_gradient, of_operands = sign_conv.backward(gradient_of, prepared, operands, None, needs_x, needed)
            if needed[1] and not sign_conv.geometry.merges:
                sums = passes.for_floats.gradient_sums(gradient, sign_conv.forward(prepared, operands), relu=False)
                of_operands[1] = sums[1]
        of_operands = only_needed(of_operands, needed, operands)
        return None, x_gradient.to(x.dtype) if needs_x else None, *of_operands


def only_needed(
    gradients: Sequence[Tensor | None], needed: Sequence[bool], like: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients that are asked for, in the dtypes of their tensors."""
    return [
        gradient.to(tensor.dtype) if is_needed else None
        for gradient, is_needed, tensor in zip(gradients, needed, like, strict=True)
    ]


# torch.compile does not trace it: its kernels take addresses, which traced tensors do not have.
@torch.compiler.disable
def run_conv(conv: BinaryConv, x: Tensor) -> Tensor:
    """A binary conv without its bias, lean; see :func:`can_run_conv`."""
    return _ConvFunction.apply(conv, x, *conv.operands())
