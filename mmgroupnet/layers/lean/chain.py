"""Memory-lean autograd of chains of binary units: the same gradients as plain autograd's, a fraction of its memory.

A chain of units ``sign, conv, ReLU, norm, add`` keeps its input and the int16 sums of its convolutions, and recomputes
the rest elementwise in the backward pass; :mod:`mmgroupnet.layers.lean.batch_norm` has the derivation.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmgroupnet.layers.branches import add_up
from mmgroupnet.layers.lean.batch_norm import is_batch_norm, is_synchronised
from mmgroupnet.layers.lean.float_shortcut import is_float_shortcut
from mmgroupnet.layers.lean.interface import BinaryConv, may_run_lean
from mmgroupnet.layers.lean.path import find_hooks, first_derivatives, report_hooks, wants_gradient
from mmgroupnet.layers.lean.unit import ChainUnit, Kept, LeanUnit, only_needed
from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.ops.passes import choose_passes
from mmgroupnet.ops.precision import without_autocast


class Chain(NamedTuple):
    """Consecutive units.

    Attributes:
        units: The units.
        num_bases: Number K of branches of the input.
        shortcut: A unit, shared by all branches, that computes the shortcut from the chain's input; None if the input
            is the shortcut.
        recompute: Does not keep the integers either, and convolves again in the backward pass.
    """

    units: tuple[ChainUnit, ...]
    num_bases: int
    shortcut: ChainUnit | None = None
    recompute: bool = False

    @property
    def all_units(self) -> tuple[ChainUnit, ...]:
        """The units and the shortcut, in the order of their tensors."""
        return self.units if self.shortcut is None else (*self.units, self.shortcut)


def can_run_chain(
    chain: Chain, x: Tensor, owner: nn.Module, bypassed: Sequence[nn.Module | None] | None = None
) -> bool:
    """Whether a chain runs lean on an input: it consists of batch norms and of convs that can run lean, without input
    norms and biases; see :mod:`mmgroupnet.layers.lean.path`.

    Args:
        chain: The chain.
        x: The input.
        owner: The module that the chain replaces.
        bypassed: The modules that the chain bypasses. Default: None, all children of the owner.

    Raises:
        RuntimeError: If a bypassed module has hooks and the norms synchronise over processes.
    """
    if not wants_gradient([x, *owner.parameters()]):
        return False
    for unit in chain.all_units:
        if not is_batch_norm(unit.norm):
            return False
        conv = unit.conv
        if isinstance(conv, BinaryConv):
            if not (conv.is_as_written and may_run_lean(conv)):
                return False
            if conv.bias is not None or conv.input_norm is not None:
                return False
        elif unit is not chain.shortcut or not is_float_shortcut(conv):
            return False  # such as a packed conv in a partly packed block
    parts = owner.children() if bypassed is None else bypassed
    hooked = next((found for part in parts if part is not None and (found := find_hooks(part, owner))), None)
    if hooked is not None:
        report_hooks(owner, hooked, any(is_synchronised(unit.norm) for unit in chain.all_units))
    return hooked is None


class _Plan:
    """The units of a chain, built once in the forward pass, and how they are connected.

    Args:
        chain: The chain.
        x: The input.
        weight: Latent weights of the first conv.
    """

    def __init__(self, chain: Chain, x: Tensor, weight: Tensor) -> None:
        try:
            self.passes = choose_passes(x, weight, chain.units[0].conv)
        except ValueError as error:
            raise ValueError(f'the chain that begins with {error}') from None
        self.num_bases, self.recompute = chain.num_bases, chain.recompute
        self.units = [LeanUnit(unit, unit.conv.num_folded, False, self.passes) for unit in chain.units]
        self.shortcut = None
        if chain.shortcut is not None:
            self.shortcut = LeanUnit(chain.shortcut, chain.num_bases, True, self.passes)
        self.counts = [unit.num_tensors for unit in chain.all_units]
        self.in_channels = chain.units[0].conv.in_channels

    @property
    def all_units(self) -> list[LeanUnit]:
        """The units and the shortcut."""
        return self.units if self.shortcut is None else [*self.units, self.shortcut]

    def group(self, values: Sequence) -> list[list]:
        """One value per tensor, unit by unit."""
        rest: Iterator = iter(values)
        return [[next(rest) for _ in range(count)] for count in self.counts]

    def connect(
        self, x: Tensor, gate: Tensor | None, scales: Tensor | None, following: UnitGeometry | None = None
    ) -> Tensor:
        """The input of the units: gated branches, or, without a gate, unchanged branches or copies of one map;
        ``following`` as for :meth:`LeanUnit.output`."""
        x = self.passes.prepare(x)
        if gate is not None and scales is not None:
            return self.passes.connect(x, gate.detach(), scales.detach(), following)
        if x.shape[1] != self.num_bases * self.in_channels:
            x = self.passes.prepare(torch.cat([x] * self.num_bases, dim=1))
        return x

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor | None, scales: Tensor | None
    ) -> list[Tensor | None]:
        """Gradients of input, gate and scales."""
        if gate is not None and scales is not None:
            return list(self.passes.connect_gradient(gradient, self.passes.prepare(x), gate.detach(), scales.detach()))
        if gradient.shape[1] != x.shape[1]:
            gradient = add_up(gradient, self.num_bases)
        return [gradient, None, None]


class _ChainFunction(torch.autograd.Function):
    """A connection and a chain of units behind it; keeps the input and the integers."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, gate: Tensor | None, scales: Tensor | None, *tensors: Any) -> Tensor:
        plan = ctx.plan = _Plan(chain, x, tensors[0])
        tensors_of = dict(zip(plan.all_units, plan.group(tensors), strict=True))
        with without_autocast(x.device):
            following = [unit.convolves(tensors_of[unit]) for unit in plan.units]
            current = shortcut_map = plan.connect(x, gate, scales, following[0])
            of_shortcut: list[Kept] = []
            if plan.shortcut is not None and chain.shortcut is not None:
                given = tensors_of[plan.shortcut]
                of_shortcut = [plan.shortcut.forward(chain.shortcut, current, given)]
                shortcut_map = plan.shortcut.output(of_shortcut[0], current, None, given)
            kept = []
            for module, unit, next_one in zip(chain.units, plan.units, (*following[1:], None), strict=True):
                kept.append(unit.forward(module, current, tensors_of[unit]))
                current = unit.output(kept[-1], current, shortcut_map, tensors_of[unit], next_one)
        kept += of_shortcut
        if plan.recompute:
            kept = [each._replace(y=None) for each in kept]
        ctx.save_for_backward(x, gate, scales, *tensors, *(value for each in kept for value in each.tensors()))
        return current.to(x.dtype)

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(gradient.device):
            return _ChainFunction._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, units = ctx.plan, ctx.plan.units
        x, gate, scales, *saved = ctx.saved_tensors
        num_tensors = sum(plan.counts)
        rest = iter(saved[num_tensors:])
        kept = {unit: Kept.of(rest) for unit in plan.all_units}
        tensors = dict(zip(plan.all_units, plan.group(saved[:num_tensors]), strict=True))
        needs_connection = ctx.needs_input_grad[1:4]
        needed = dict(zip(plan.all_units, plan.group(ctx.needs_input_grad[4:]), strict=True))
        needs_connected = any(needs_connection)
        gradients: dict[LeanUnit, list[Tensor | None]] = {}
        gradient = plan.passes.prepare(gradient)  # once for all passes

        # Recompute the inputs of all units.
        connected = shortcut_map = plan.connect(x, gate, scales)
        shortcut = plan.shortcut
        if shortcut is not None and any(unit.residual == Residual.SHORTCUT for unit in units[:-1]):
            shortcut_map = shortcut.output(kept[shortcut], connected, None, tensors[shortcut])
        inputs = [connected]
        for unit in units[:-1]:
            inputs.append(unit.output(kept[unit], inputs[-1], shortcut_map, tensors[unit]))
        del shortcut_map

        def run(unit: LeanUnit, g: Tensor, given: Tensor, residual: Tensor | None, needs_x: bool) -> Any:
            given_gradient, gradients[unit] = unit.backward(
                g, given, kept[unit], tensors[unit], residual, needs_x, needed[unit]
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
        of_connection: list[Tensor | None] = [None] * 3
        if needs_connected:
            of_connection = plan.connect_gradient(gradient, x, gate, scales)
            of_connection = only_needed(of_connection, needs_connection, (x, gate, scales))
        of_tensors = (value for unit in plan.all_units for value in gradients[unit])
        return None, *of_connection, *of_tensors


@torch.compiler.disable
def run_chain(chain: Chain, x: Tensor, gate: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
    """Connects branches and runs a chain on them, lean; see :func:`can_run_chain`.

    Args:
        chain: The chain.
        x: Outputs of the last chain's branches, ``(N, K*C, H, W)``; without a gate also one map ``(N, C, H, W)``, which
            all branches read.
        gate: ``(K,)``; each branch reads ``m + gate[i] * (x_i - m)``, with the merged map m. Default: None, each branch
            reads its own map.
        scales: Weights of the merged map ``m = sum_j scales[j] * x_j``, ``(K,)``. Default: None, without a gate.

    Returns: ``(N, K*C', H', W')``.
    """
    tensors = [value for unit in chain.all_units for value in unit.tensors()]
    return _ChainFunction.apply(chain, x, gate, scales, *tensors)
