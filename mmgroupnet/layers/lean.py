r"""Memory-lean autograd of binary convolutions and of chains of them: the same gradients, a fraction of the memory.

Plain autograd keeps the signs of a unit as floats, copies of its binarised weights, its ReLU and more. All of it can be
derived: a chain of units ``sign, conv, ReLU, norm, add`` keeps its input and the integers of its convolutions, 16 bits
each, and computes the rest again in the backward pass, elementwise.

With the integers y, the scale :math:`\alpha`, :math:`r = \max(y, 0)`, and mean :math:`\mu` and inverse deviation
:math:`\rho` of :math:`\alpha r`, a unit without its residual is

.. math::
    \hat{x} = \rho (\alpha r - \mu), \qquad \mathrm{out} = \gamma \hat{x} + \beta

and, with the gradient g of its output and sums over the n pixels, a batch norm in training has

.. math::
    \nabla\beta = \sum g, \qquad \nabla\gamma = \sum g \hat{x} = \rho \Bigl(\alpha \sum g r - \mu \sum g\Bigr), \qquad
    \nabla(\alpha y) = [y > 0] \, \gamma \rho \, \bigl(g - \nabla\beta / n - \hat{x} \nabla\gamma / n\bigr)

which is affine in g and r. In evaluation mode the two subtracted terms are zero.

A convolution of signs s that are padded with v is one of s - v that are padded with zero, plus v times the sum of the
weights: no padded copy is made.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mmgroupnet.layers.branches import share, split
from mmgroupnet.ops import Residual, training
from mmgroupnet.quantizers import PolynomialSign, ShiftedSign, SignActivation, SignWeight

# Of norms whose statistics and gradients are spelled out above; mmengine's own SyncBatchNorm has that of torch's.
_NORM_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


def supports_conv(conv: nn.Module) -> bool:
    """Whether a binary conv can run lean: it does so unless its signs or weights are of somebody else's making, or
    somebody watches its parts."""
    return (
        conv.memory_efficient
        and torch.is_grad_enabled()
        and isinstance(conv.activation, SignActivation)
        and type(conv.activation).forward in (SignActivation.forward, ShiftedSign.forward)
        and isinstance(conv.weight_quantizer, SignWeight)
        and not _is_watched(conv)
    )


def _is_binary(conv: nn.Module) -> bool:
    """Whether it is one of our binary convs, which this file cannot import."""
    return hasattr(conv, 'weight_quantizer')


def _is_watched(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules() if part is not module)


class _SignConv:
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
        if fits and training.uses_kernels(z):
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
        gradient_of: Callable[[int, bool], tuple[Tensor, Tensor]],
        x: Tensor,
        scale: Tensor,
        residual: Tensor | None,
        needs_weight: bool,
        needs_x: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of :attr:`parameters`; one branch after the other, so that
        what is derived anew is never there for all of them.

        Args:
            gradient_of: Gives the gradient of a branch of the scaled output, ``(N, C_out, H', W')``, and its sum over
                all pixels, ``(C_out,)``; it may lie where the last one lay, if the second argument is true.
            x: The input.
            scale: The scale of the integers, see :meth:`scale`.
            residual: Added to the gradient of the input.
            needs_weight: Whether weights (and scales of bases) need one.
            needs_x: Whether the input (or the shift) needs one.
        """
        conv, z = self.conv, self.shifted(x.detach())
        is_shifted = isinstance(conv.activation, ShiftedSign)
        merged = None
        if conv.is_merged:
            with torch.enable_grad():
                merged = conv.effective_weight()
        rows = conv.out_channels
        latent = conv.weight.detach()
        weight_gradient = torch.empty_like(latent if merged is None else merged) if needs_weight else None
        # A shift wants the gradient without the residual.
        sign_gradient = _SignGradient(conv.activation, z, None if is_shifted else residual, self.branches)
        dilations = conv.branch_dilations()
        shared = range(self.branches) if self.is_shared else None
        for k in range(1 if self.is_shared else self.branches):
            at = slice(k * rows, (k + 1) * rows)
            if merged is None:
                weight = training.scaled_signs(latent[at], scale[at])
            else:
                weight = merged.detach()
            if shared is None:
                gradient, total = gradient_of(k, True)
                signs = training.padded_signs(z, conv.padding_value, k, self.branches)
            else:  # The branches are batch.
                gradients, totals = zip(*(gradient_of(branch, False) for branch in shared), strict=True)
                gradient, total = torch.cat(gradients), sum(totals)
                signs = torch.cat(
                    [training.padded_signs(z, conv.padding_value, branch, self.branches) for branch in shared]
                )
            of_signs, of_weight = self._convolution_backward(
                gradient, signs.to(gradient.dtype), weight.to(gradient.dtype), dilations[k], needs_x, needs_weight
            )
            if needs_weight:
                of_padding = total.to(of_weight.dtype).view(-1, 1, 1, 1)
                torch.add(of_weight, of_padding, alpha=conv.padding_value, out=weight_gradient[at])
            if needs_x:
                for branch, part in enumerate(of_signs.chunk(self.branches)) if self.is_shared else ((k, of_signs),):
                    sign_gradient.add(branch, part)
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


class _ConvFunction(torch.autograd.Function):
    """One binary conv, which keeps nothing but its input."""

    @staticmethod
    def forward(ctx: FunctionCtx, conv: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.sign_conv = _SignConv(conv, conv.num_folded)
        scale = ctx.sign_conv.scale(x)
        ctx.save_for_backward(x, scale, *parameters)
        y = ctx.sign_conv.forward(x)
        if conv.is_merged:
            return y
        return y.to(x.dtype).mul_(scale.view(-1, 1, 1)).to(_autocast_dtype(x) or x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *_ = ctx.saved_tensors
        _, needs_x, needs_weight, *others = ctx.needs_input_grad
        branches = split(gradient, ctx.sign_conv.branches)

        def gradient_of(k: int, reuse: bool) -> tuple[Tensor, Tensor]:
            return branches[k], branches[k].sum((0, 2, 3))

        needs_weight, needs_x = needs_weight or any(others), needs_x or any(others)
        x_gradient, parameter_gradients = ctx.sign_conv.backward(gradient_of, x, scale, None, needs_weight, needs_x)
        return None, x_gradient, *_only_needed(parameter_gradients, ctx.needs_input_grad[2:])


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would convolve in; None where it is not on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _only_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True)]


# torch.compile runs it as it is: its kernels take addresses, which tensors that are traced do not have.
@torch.compiler.disable
def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A binary conv without its bias, lean; see :func:`supports_conv`."""
    return _ConvFunction.apply(conv, x, *_SignConv(conv, conv.num_folded).parameters)


class ChainUnit(NamedTuple):
    """A conv of a chain and what follows it.

    Attributes:
        conv: A binary conv; of a shortcut also a module of full precision.
        norm: The norm behind it.
        relu: Whether a ReLU stands between them.
        residual: What is added at the end: the unit's input, or the chain's shortcut.
    """

    conv: nn.Module
    norm: nn.Module
    relu: bool = True
    residual: Residual = Residual.NONE


class Chain(NamedTuple):
    """Units one behind the other.

    Attributes:
        units: The units.
        num_bases: Number K of branches of the input.
        shortcut: A unit that makes the shortcut of the chain's input, and that all branches share; None: that input.
        recompute: Keeps not even the integers, and convolves again in the backward pass.
    """

    units: tuple[ChainUnit, ...]
    num_bases: int
    shortcut: ChainUnit | None = None
    recompute: bool = False


def supports_chain(chain: Chain) -> bool:
    """Whether a chain can run lean: it consists of convs that can, without norms of their own or biases, and of batch
    norms; nobody watches its parts."""
    units = chain.units if chain.shortcut is None else (*chain.units, chain.shortcut)
    for unit in units:
        if type(unit.norm).forward not in _NORM_FORWARDS or _is_watched(unit.conv) or unit.norm._forward_hooks:
            return False
        if unit is chain.shortcut and not _is_binary(unit.conv):
            continue
        if not supports_conv(unit.conv) or unit.conv.bias is not None or unit.conv.input_norm is not None:
            return False
        if unit.conv._forward_hooks or unit.conv._forward_pre_hooks:
            return False
    return True


class _Norm:
    """A batch norm behind ``scale * r``, as scale and shift of r.

    Args:
        norm: The norm.
        branches: Branches that share it; 1 where each has channels of its own.
    """

    def __init__(self, norm: nn.Module, branches: int) -> None:
        self.norm = norm
        self.branches = branches
        self.uses_batch = norm.training or norm.running_mean is None

    def _reduced(self, sums: Tensor) -> Tensor:
        """Sums of all branches, ``(2, K*C)`` to ``(2, C)``."""
        return sums.view(2, self.branches, -1).sum(1)

    def _all_reduce(self, values: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values, group=norm.process_group)
        return values

    def statistics(self, sums: Tensor | None, pixels: int, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and inverse deviation of ``scale * r``, ``(C,)``, and the number of values behind them; moves the
        running statistics.

        Args:
            sums: Sums of r and r * r, ``(2, K*C)``; not needed in evaluation mode.
            pixels: Pixels of a branch.
            scale: ``(C,)``.
        """
        norm, scale = self.norm, scale.double()
        if not self.uses_batch:
            count = scale.new_ones(())
            return norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt(), count
        if pixels * self.branches == 1 and norm.training:
            raise ValueError(f'one value per channel: {type(norm).__name__} takes more than one in training')
        sums = self._reduced(sums)
        count = torch.full_like(sums[:1, :1], pixels * self.branches)
        values = self._all_reduce(torch.cat([sums.flatten(), count.flatten()]))
        sums, count = values[:-1].view(2, -1), values[-1].clone()  # a view would keep all of them
        mean = scale * sums[0] / count
        variance = (scale.square() * (sums[1] / count) - mean.square()).clamp(min=0)
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / norm.num_batches_tracked.double() if norm.momentum is None else norm.momentum
            unbiased = variance * (count / (count - 1))
            for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running.copy_(running.double().lerp(value, momentum))
        return mean, (variance + norm.eps).rsqrt(), count

    def _parameters(self, like: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.norm
        if norm.weight is None:
            return torch.ones_like(like), torch.zeros_like(like)
        return norm.weight.detach().double(), norm.bias.detach().double()

    def affine(self, mean: Tensor, inverse_deviation: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of r that give the output, per folded channel."""
        gamma, beta = self._parameters(mean)
        factor = gamma * inverse_deviation
        return (factor * scale.double()).repeat(self.branches), (beta - factor * mean).repeat(self.branches)

    def backward(
        self, sums: Tensor, mean: Tensor, inverse_deviation: Tensor, count: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Gradients of weight and bias, and p, q, s of :func:`training.affine_gradient`.

        Args:
            sums: Of g and of g * r, ``(2, K*C)``.
            mean, inverse_deviation, count: As :meth:`statistics` gave them.
            scale: ``(C,)``.
        """
        scale = scale.double()
        g, g_r = self._reduced(sums)
        bias_gradient, weight_gradient = g, inverse_deviation * (scale * g_r - mean * g)
        gamma, _ = self._parameters(mean)
        p = gamma * inverse_deviation
        q = s = torch.zeros_like(p)
        if self.uses_batch:
            g, g_x = self._all_reduce(torch.stack([bias_gradient, weight_gradient])) / count
            q = -p * inverse_deviation * scale * g_x
            s = -p * (g - mean * inverse_deviation * g_x)
        return weight_gradient, bias_gradient, tuple(value.repeat(self.branches) for value in (p, q, s))


class _Unit:
    """Forward and backward pass of a unit of a chain without autograd."""

    def __init__(self, unit: ChainUnit, branches: int, is_shared: bool) -> None:
        is_binary = _is_binary(unit.conv)
        self.unit = unit
        self.branches = branches
        self.conv = _SignConv(unit.conv, branches) if is_binary else None
        self.norm = _Norm(unit.norm, branches if is_shared else 1)
        self.parameters = self.conv.parameters if is_binary else list(unit.conv.parameters())
        self.num_conv_parameters = len(self.parameters)
        if unit.norm.weight is not None:
            self.parameters = [*self.parameters, unit.norm.weight, unit.norm.bias]

    def scale(self, like: Tensor) -> Tensor:
        """Scale of y, per channel of the norm."""
        if self.conv is None:
            return torch.ones(self.unit.norm.num_features, dtype=like.dtype, device=like.device)
        return self.conv.scale(like)[: self.unit.norm.num_features]

    def convolve(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            return self.conv.forward(x)
        return share(self.unit.conv, x.contiguous(), self.branches)  # strided, see _SignConv.backward

    def statistics(self, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums = training.relu_sums(y, self.unit.relu) if self.norm.uses_batch else None
        return self.norm.statistics(sums, y.numel() // y.shape[1], scale)

    def output(
        self, y: Tensor, scale: Tensor, mean: Tensor, inverse_deviation: Tensor, residual: Tensor | None, like: Tensor
    ) -> Tensor:
        factor, shift = self.norm.affine(mean, inverse_deviation, scale)
        return training.relu_affine(y, factor, shift, residual, self.unit.relu, like)

    def backward(
        self,
        gradient: Tensor,
        x: Tensor,
        y: Tensor | None,
        statistics: tuple[Tensor, Tensor, Tensor],
        scale: Tensor,
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of the parameters."""
        if self.conv is None:  # Its conv is of full precision, and run by autograd once more.
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                out = self.convolve(x)
            y = out.detach()
        elif y is None:
            y = self.conv.forward(x)
        sums = training.gradient_sums(gradient, y, self.unit.relu)
        weight_gradient, bias_gradient, (p, q, s) = self.norm.backward(sums, *statistics, scale)
        of_conv = self.num_conv_parameters
        if self.conv is None:
            g, _ = training.AffineGradient(gradient, y, p, q, s, 1, self.unit.relu).branch(0)
            wanted = [x, *(value for value in self.parameters[:of_conv] if value.requires_grad)]
            x_gradient, *found = torch.autograd.grad(out, wanted, g.to(out.dtype))
            found = iter(found)
            gradients = [next(found) if value.requires_grad else None for value in self.parameters[:of_conv]]
            x_gradient = x_gradient if residual is None else x_gradient + residual
        else:
            branches = training.AffineGradient(gradient, y, p, q, s, self.branches, self.unit.relu)
            # As autocast convolved.
            dtype = y.dtype if y.dtype in (torch.float16, torch.bfloat16) else gradient.dtype

            def gradient_of(k: int, reuse: bool) -> tuple[Tensor, Tensor]:
                branch, total = branches.branch(k, reuse)
                return branch.to(dtype), total

            needs_weight = any(needed[:of_conv])
            needs_x = needs_x or any(needed[1:of_conv])
            x_gradient, gradients = self.conv.backward(
                gradient_of, x, scale, residual, needs_weight, needs_x
            )
        if len(self.parameters) > of_conv:
            dtype = self.unit.norm.weight.dtype
            gradients = [*gradients, weight_gradient.to(dtype), bias_gradient.to(dtype)]
        return x_gradient, gradients


def _build(chain: Chain) -> tuple[list[_Unit], _Unit | None]:
    units = [_Unit(unit, unit.conv.num_folded, is_shared=False) for unit in chain.units]
    return units, None if chain.shortcut is None else _Unit(chain.shortcut, chain.num_bases, is_shared=True)


class _ChainFunction(torch.autograd.Function):
    """A connection and a chain of units behind it; keeps the input and the integers."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, chain: Chain, x: Tensor, gate: Tensor | None, scales: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        units, shortcut = _build(chain)
        all_units = units if shortcut is None else [shortcut, *units]
        connected = _connect(chain, x, gate, scales)
        kept: list[Tensor | None] = []

        def run(unit: _Unit, given: Tensor, residual: Tensor | None) -> Tensor:
            y, scale = unit.convolve(given), unit.scale(given)
            statistics = unit.statistics(y, scale)
            kept.extend([None if chain.recompute else y, scale, *statistics])
            return unit.output(y, scale, *statistics[:2], residual, given)

        shortcut_map = connected if shortcut is None else run(shortcut, connected, None)
        current = connected
        for unit in units:
            residual = {Residual.NONE: None, Residual.INPUT: current, Residual.SHORTCUT: shortcut_map}
            current = run(unit, current, residual[unit.unit.residual])
        ctx.chain, ctx.num_units, ctx.num_parameters = chain, len(all_units), len(parameters)
        ctx.save_for_backward(x, gate, scales, *parameters, *kept)
        ctx.autocast_dtype = _autocast_dtype(x)
        return current

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.autocast_dtype is None:
            return _ChainFunction._backward(ctx, gradient)
        # What is convolved again is convolved as it was.
        with torch.autocast(gradient.device.type, ctx.autocast_dtype):
            return _ChainFunction._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chain = ctx.chain
        x, gate, scales, *saved = ctx.saved_tensors
        per_unit = 5
        kept = saved[ctx.num_parameters :]
        kept = [kept[i * per_unit : (i + 1) * per_unit] for i in range(ctx.num_units)]
        units, shortcut = _build(chain)
        _, needs_x, needs_gate, needs_scales, *needed = ctx.needs_input_grad
        needs_connected = needs_x or needs_gate or needs_scales

        if training.uses_kernels(gradient):
            gradient = gradient.contiguous(memory_format=torch.channels_last)  # once for all passes

        # The inputs of all units once more.
        connected = _connect(chain, x, gate, scales)
        shortcut_map, shortcut_kept = connected, None

        def integers(unit: _Unit, given: Tensor, y: Tensor | None) -> Tensor:
            return unit.convolve(given) if y is None else y

        if shortcut is not None:
            shortcut_kept, *kept = kept
            if any(unit.unit.residual == Residual.SHORTCUT for unit in units[:-1]):
                y, scale, mean, inverse_deviation, _ = shortcut_kept
                y = integers(shortcut, connected, y)
                shortcut_map = shortcut.output(y, scale, mean, inverse_deviation, None, connected)
        inputs = [connected]
        for unit, (y, scale, mean, inverse_deviation, _) in zip(units[:-1], kept[:-1], strict=True):
            residual = {Residual.NONE: None, Residual.INPUT: inputs[-1], Residual.SHORTCUT: shortcut_map}
            y = integers(unit, inputs[-1], y)
            inputs.append(
                unit.output(y, scale, mean, inverse_deviation, residual[unit.unit.residual], inputs[-1])
            )
        del shortcut_map

        positions = []  # of each unit's parameters
        position = 0
        for unit in units if shortcut is None else [shortcut, *units]:
            positions.append(slice(position, position + len(unit.parameters)))
            position += len(unit.parameters)
        parameter_gradients: list[Tensor | None] = [None] * ctx.num_parameters
        shortcut_position = None if shortcut is None else positions.pop(0)

        def run(
            unit: _Unit, at: slice, g: Tensor, given: Tensor, tensors: list, residual: Tensor | None, wants_x: bool
        ) -> Tensor | None:
            y, scale, *statistics = tensors
            given_gradient, gradients = unit.backward(
                g, given, y, tuple(statistics), scale, residual, wants_x, needed[at]
            )
            parameter_gradients[at] = _only_needed(gradients, needed[at])
            return given_gradient

        shortcut_gradient = None
        for index in reversed(range(len(units))):
            unit, given = units[index], inputs.pop()
            residual = gradient if unit.unit.residual == Residual.INPUT else None
            if unit.unit.residual == Residual.SHORTCUT:
                shortcut_gradient = gradient if shortcut_gradient is None else shortcut_gradient + gradient
            if index == 0 and shortcut_gradient is not None:
                if shortcut is not None:
                    residual = run(
                        shortcut, shortcut_position, shortcut_gradient, given, shortcut_kept, residual, needs_connected
                    )
                else:
                    residual = shortcut_gradient if residual is None else residual + shortcut_gradient
            gradient = run(unit, positions[index], gradient, given, kept[index], residual, index > 0 or needs_connected)
        x_gradient = gate_gradient = scales_gradient = None
        if needs_connected:
            x_gradient, gate_gradient, scales_gradient = _connect_gradient(chain, gradient, x, gate, scales)
        found = _only_needed([x_gradient, gate_gradient, scales_gradient], ctx.needs_input_grad[1:4])
        return None, *found, *parameter_gradients


def _connect(chain: Chain, x: Tensor, gate: Tensor | None, scales: Tensor | None) -> Tensor:
    """The input of the units: gated branches, or, without a gate, branches as they come or copies of one."""
    x = x.detach()
    if gate is not None:
        return training.connect(x, gate, scales)
    if training.uses_kernels(x):
        x = x.contiguous(memory_format=torch.channels_last)  # now, before there are K of them
    channels = chain.units[0].conv.in_channels
    return x if x.shape[1] == chain.num_bases * channels else torch.cat([x] * chain.num_bases, dim=1)


def _connect_gradient(
    chain: Chain, gradient: Tensor, x: Tensor, gate: Tensor | None, scales: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if gate is not None:
        return training.connect_gradient(gradient, x, gate, scales)
    if gradient.shape[1] != x.shape[1]:
        gradient = gradient.unflatten(1, (chain.num_bases, -1)).sum(dim=1)
    return gradient, None, None


@torch.compiler.disable
def run_chain(chain: Chain, x: Tensor, gate: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
    """Connects branches and runs a chain on them, lean; see :func:`supports_chain`.

    Args:
        chain: The chain.
        x: Outputs of the last chain's branches, ``(N, K*C, H, W)``; without a gate also one map ``(N, C, H, W)``, which
            all branches read.
        gate: ``(K,)``; each branch reads ``m + gate[i] * (x_i - m)``, with the merged map m. Default: None, it reads
            its own map.
        scales: ``(K,)``, of the merged map ``m = sum_j scales[j] * x_j``. Default: None, without a gate.

    Returns: ``(N, K*C', H', W')``.
    """
    units, shortcut = _build(chain)
    parameters = [value for unit in (units if shortcut is None else [shortcut, *units]) for value in unit.parameters]
    return _ChainFunction.apply(chain, x, gate, scales, *parameters)
