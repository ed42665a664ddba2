r"""Memory-lean autograd of chains of binary units: the same gradients as plain autograd's, a fraction of its memory.

A chain of units ``sign, conv, ReLU, norm, add`` keeps its input and the integers of its convolutions, 16 bits each, and
computes the rest again in the backward pass, elementwise.

With the integers y, the scale :math:`\alpha`, :math:`r = \max(y, 0)`, and mean :math:`\mu` and inverse deviation
:math:`\rho` of :math:`\alpha r`, a unit without its residual is

.. math::
    \hat{x} = \rho (\alpha r - \mu), \qquad \mathrm{out} = \gamma \hat{x} + \beta

and, with the gradient g of its output and sums over the n pixels, a batch norm in training has

.. math::
    \nabla\beta = \sum g, \qquad \nabla\gamma = \sum g \hat{x} = \rho \Bigl(\alpha \sum g r - \mu \sum g\Bigr), \qquad
    \nabla(\alpha y) = [y > 0] \, \gamma \rho \, \bigl(g - \nabla\beta / n - \hat{x} \nabla\gamma / n\bigr)

which is affine in g and r. In evaluation mode the two subtracted terms are zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mmgroupnet.layers.binary_conv import BinaryConv2d
from mmgroupnet.layers.branches import share
from mmgroupnet.layers.lean_conv import (
    GradientOf,
    SignConv,
    autocast_dtype,
    has_listeners,
    only_needed,
    supports_conv,
)
from mmgroupnet.ops import Residual, training

# Of norms whose statistics and gradients are spelled out above; mmengine's own SyncBatchNorm has that of torch's.
_NORM_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


class ChainUnit(NamedTuple):
    """A conv of a chain and what follows it.

    Attributes:
        conv: A binary conv; of a shortcut any module.
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


def supports_chain(chain: Chain, owner: nn.Module) -> bool:
    """Whether a chain can run lean: it consists of convs that can, without norms of their own or biases, and of batch
    norms.

    Args:
        chain: The chain.
        owner: The module that it stands for; nobody may listen to its parts, which are not called.
    """
    units = chain.units if chain.shortcut is None else (*chain.units, chain.shortcut)
    convs = [unit.conv for unit in units if unit is not chain.shortcut or isinstance(unit.conv, BinaryConv2d)]
    return (
        not has_listeners(owner)
        and all(type(unit.norm).forward in _NORM_FORWARDS for unit in units)
        # Of a module that is packed in part some are packed.
        and all(isinstance(conv, BinaryConv2d) and supports_conv(conv) for conv in convs)
        and all(conv.bias is None and conv.input_norm is None for conv in convs)
    )


class _PlainConv:
    """What :class:`SignConv` is for a binary conv, for any module that the branches share: autograd runs it once more.

    Args:
        module: The module.
        branches: Folded branches of its input.
        channels: Channels of its output.
    """

    def __init__(self, module: nn.Module, branches: int, channels: int) -> None:
        self.layers = list(module) if isinstance(module, nn.Sequential) else [module]
        self.branches, self.channels = branches, channels
        self.parameters = list(module.parameters())

    def scale(self, like: Tensor) -> Tensor:
        """One, per folded channel of the output."""
        return like.new_ones(self.branches * self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, K*C_in, H, W)`` to ``(N, K*C_out, H', W')``."""
        for layer in self.layers:
            x = self._run(layer, x)
        return x

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        if isinstance(layer, nn.AvgPool2d):
            return layer(x)  # channel by channel, of whichever branch
        is_linear = type(layer) is nn.Conv2d and layer.kernel_size == layer.stride == (1, 1)
        is_linear = is_linear and layer.padding == (0, 0) and layer.groups == 1
        if is_linear and x.is_contiguous(memory_format=torch.channels_last):
            # The channels of a pixel lie side by side, branch by branch: a matrix product, without a copy.
            pixels = x.permute(0, 2, 3, 1).unflatten(3, (self.branches, -1))
            return F.linear(pixels, layer.weight.flatten(1), layer.bias).flatten(3).permute(0, 3, 1, 2)
        return share(layer, x.contiguous(), self.branches)  # it may be strided, see SignConv

    def backward(
        self,
        gradient_of: GradientOf,
        x: Tensor,
        scale: Tensor,
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """As :meth:`SignConv.backward`."""
        x = x.detach().requires_grad_(needs_x)
        wanted = [value for value, is_needed in zip(self.parameters, needed, strict=True) if is_needed]
        if not (needs_x or wanted):
            return None, [None] * len(needed)
        with torch.enable_grad():
            out = self.forward(x)
        gradient = torch.cat([gradient_of(k, False)[0] for k in range(self.branches)], dim=1).to(out.dtype)
        found = list(torch.autograd.grad(out, [x, *wanted] if needs_x else wanted, gradient))
        x_gradient = found.pop(0) if needs_x else None
        if needs_x and residual is not None:
            x_gradient = x_gradient + residual
        return x_gradient, [found.pop(0) if is_needed else None for is_needed in needed]


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
        """Gradients of weight and bias, and p, q, s of :class:`training.AffineGradient`.

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


class _Kept(NamedTuple):
    """What a unit keeps for its backward pass.

    Attributes:
        y: The integers (floats of other convs); None where they are computed again.
        scale: Their scale, ``(C,)`` per channel of the norm.
        mean, inverse_deviation, count: See :meth:`_Norm.statistics`.
    """

    y: Tensor | None
    scale: Tensor
    mean: Tensor
    inverse_deviation: Tensor
    count: Tensor


class _Unit:
    """Forward and backward pass of a unit of a chain without autograd."""

    def __init__(self, unit: ChainUnit, branches: int, is_shared: bool) -> None:
        norm = unit.norm
        self.relu, self.residual, self.branches = unit.relu, unit.residual, branches
        if isinstance(unit.conv, BinaryConv2d):
            self.conv = SignConv(unit.conv, branches)
        else:
            self.conv = _PlainConv(unit.conv, branches, norm.num_features)
        self.norm = _Norm(norm, branches if is_shared else 1)
        self.norm_parameters = [] if norm.weight is None else [norm.weight, norm.bias]
        self.parameters = [*self.conv.parameters, *self.norm_parameters]

    def forward(self, x: Tensor) -> _Kept:
        """Convolves, and moves the norm's statistics."""
        y = self.conv.forward(x)
        scale = self.conv.scale(x)[: self.norm.norm.num_features]
        sums = training.relu_sums(y, self.relu) if self.norm.uses_batch else None
        return _Kept(y, scale, *self.norm.statistics(sums, y.numel() // y.shape[1], scale))

    def output(self, kept: _Kept, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """The output for an input and, where the unit adds it, the chain's shortcut."""
        y = self.conv.forward(x) if kept.y is None else kept.y
        residual = {Residual.NONE: None, Residual.INPUT: x, Residual.SHORTCUT: shortcut}[self.residual]
        factor, shift = self.norm.affine(kept.mean, kept.inverse_deviation, kept.scale)
        return training.relu_affine(y, factor, shift, residual, self.relu, like=x)

    def backward(
        self, gradient: Tensor, x: Tensor, kept: _Kept, residual: Tensor | None, needs_x: bool, needed: Sequence[bool]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of the parameters. That of what the unit adds at its end is
        ``gradient`` itself, and the chain's matter."""
        y = self.conv.forward(x) if kept.y is None else kept.y
        sums = training.gradient_sums(gradient, y, self.relu)
        *of_norm, vectors = self.norm.backward(sums, kept.mean, kept.inverse_deviation, kept.count, kept.scale)
        branches = training.AffineGradient(gradient, y, *vectors, self.branches, self.relu)
        # As autocast convolved.
        dtype = y.dtype if y.dtype in (torch.float16, torch.bfloat16) else gradient.dtype

        def gradient_of(k: int, reuse: bool) -> tuple[Tensor, Tensor]:
            branch, total = branches.branch(k, reuse)
            return branch.to(dtype), total

        x_gradient, of_conv = self.conv.backward(
            gradient_of, x, kept.scale, residual, needs_x, needed[: len(self.conv.parameters)]
        )
        of_norm = [value.to(like.dtype) for value, like in zip(of_norm, self.norm_parameters, strict=False)]
        return x_gradient, only_needed([*of_conv, *of_norm], needed)


def _build(chain: Chain) -> tuple[list[_Unit], _Unit | None]:
    """Its units, and that of the shortcut."""
    units = [_Unit(unit, unit.conv.num_folded, is_shared=False) for unit in chain.units]
    return units, None if chain.shortcut is None else _Unit(chain.shortcut, chain.num_bases, is_shared=True)


def _all_units(units: list[_Unit], shortcut: _Unit | None) -> list[_Unit]:
    """All of them, in the order in which parameters and what is kept are listed."""
    return units if shortcut is None else [*units, shortcut]


class _ChainFunction(torch.autograd.Function):
    """A connection and a chain of units behind it; keeps the input and the integers."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, chain: Chain, x: Tensor, gate: Tensor | None, scales: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        units, shortcut = _build(chain)
        current = shortcut_map = _connect(chain, x, gate, scales)
        of_shortcut = []
        if shortcut is not None:
            of_shortcut.append(shortcut.forward(current))
            shortcut_map = shortcut.output(*of_shortcut, current, None)
        kept = []
        for unit in units:
            kept.append(unit.forward(current))
            current = unit.output(kept[-1], current, shortcut_map)
        kept += of_shortcut
        if chain.recompute:
            kept = [each._replace(y=None) for each in kept]
        ctx.chain, ctx.num_parameters, ctx.autocast_dtype = chain, len(parameters), autocast_dtype(x)
        ctx.save_for_backward(x, gate, scales, *parameters, *(value for each in kept for value in each))
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
        saved = iter(saved[ctx.num_parameters :])
        units, shortcut = _build(chain)
        kept = {unit: _Kept(*(next(saved) for _ in _Kept._fields)) for unit in _all_units(units, shortcut)}
        needs_connection, flags = ctx.needs_input_grad[1:4], iter(ctx.needs_input_grad[4:])
        needs_connected = any(needs_connection)
        needed = {unit: [next(flags) for _ in unit.parameters] for unit in kept}
        parameter_gradients = {unit: [None] * len(unit.parameters) for unit in kept}

        if training.uses_kernels(gradient):
            gradient = gradient.contiguous(memory_format=torch.channels_last)  # once for all passes

        # The inputs of all units once more.
        connected = shortcut_map = _connect(chain, x, gate, scales)
        if shortcut is not None and any(unit.residual == Residual.SHORTCUT for unit in units[:-1]):
            shortcut_map = shortcut.output(kept[shortcut], connected, None)
        inputs = [connected]
        for unit in units[:-1]:
            inputs.append(unit.output(kept[unit], inputs[-1], shortcut_map))
        del shortcut_map

        def run(unit: _Unit, g: Tensor, given: Tensor, residual: Tensor | None, needs_x: bool) -> Tensor | None:
            given_gradient, parameter_gradients[unit] = unit.backward(
                g, given, kept[unit], residual, needs_x, needed[unit]
            )
            return given_gradient

        of_shortcut = None
        for index in reversed(range(len(units))):
            unit, given, is_first = units[index], inputs.pop(), index == 0
            residual = gradient if unit.residual == Residual.INPUT else None
            if unit.residual == Residual.SHORTCUT:
                of_shortcut = gradient if of_shortcut is None else of_shortcut + gradient
            if is_first and of_shortcut is not None:
                if shortcut is not None:
                    residual = run(shortcut, of_shortcut, given, residual, needs_connected)
                else:
                    residual = of_shortcut if residual is None else residual + of_shortcut
            gradient = run(unit, gradient, given, residual, needs_connected or not is_first)
        of_connection = [None] * 3
        if needs_connected:
            of_connection = _connect_gradient(chain, gradient, x, gate, scales)
        of_parameters = (value for unit in kept for value in parameter_gradients[unit])
        return None, *only_needed(of_connection, needs_connection), *of_parameters


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
    parameters = [value for unit in _all_units(*_build(chain)) for value in unit.parameters]
    return _ChainFunction.apply(chain, x, gate, scales, *parameters)
