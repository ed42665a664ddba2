"""Reference implementation of packed units and blocks, branch by branch, without folding and bits."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet import ops
from mmgroupnet.ops import Connection, Residual, UnitGeometry

# Values below, at and above zero, where the sign jumps; the sign of both zeros is +1.
SIGN_VALUES = torch.tensor([-2.0, -1.0, -0.125, -0.0, 0.0, 0.125, 1.0, 2.0])
# The sets of kernels, from the slowest to the fastest; a machine has some of them.
KERNEL_SETS = ('portable', 'neon', 'avx2', 'avx512bw', 'avx512')
PARAMETERS = ('scale', 'bias', 'norm_scale', 'norm_shift', 'sign_scale', 'sign_shift')


def signs(x: Tensor) -> Tensor:
    """Signs as +1 and -1; the sign of zeros is +1, that of NaN is -1."""
    return (x >= 0).to(x.dtype) * 2 - 1


def geometry(**overrides) -> UnitGeometry:
    """The geometry of a 3x3 unit with two branches, changed by ``overrides``; a single dilation is used for all
    branches."""
    settings = dict(
        num_bases=2,
        in_channels=16,
        out_channels=16,
        groups=1,
        kernel_size=(3, 3),
        stride=(1, 1),
        padding=(1, 1),
        padding_value=1,
        dilations=1,
    )
    settings |= overrides
    if isinstance(settings['dilations'], int):
        settings['dilations'] = (settings['dilations'],) * settings['num_bases']
    return UnitGeometry(**settings)


@dataclass
class Unit:
    """A unit with float weights, ``(rows, in_channels / groups, kh, kw)``; only their signs are used."""

    geometry: UnitGeometry
    weight: Tensor
    parameters: dict[str, Tensor] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        return self.geometry.encode()

    @property
    def tensors(self) -> list[Tensor | None]:
        """Bits and parameters in the order of the op."""
        return [ops.pack_weight(self.weight), *(self.parameters.get(name) for name in PARAMETERS)]

    def parameter(self, name: str, branch: int, channels: int) -> Tensor | None:
        """One branch's part of a parameter, in a shape for broadcasting; branches may share a single part."""
        value = self.parameters.get(name)
        if value is None:
            return None
        parts = value.split(channels)
        return parts[branch if len(parts) > 1 else 0].view(-1, 1, 1)


def dyadic(*shape: int, smallest: int = -16, largest: int = 16) -> Tensor:
    """Random multiples of 1/8, including zeros and negative zeros; sums and products of a few of them are exact."""
    values = torch.randint(smallest, largest + 1, shape) / 8
    return torch.where(torch.rand(shape) < 0.1, SIGN_VALUES[3:5][torch.randint(2, shape)], values)


def random_signs(*shape: int) -> Tensor:
    return SIGN_VALUES[torch.randint(len(SIGN_VALUES), shape)]


def random_unit(numbers: UnitGeometry, names: tuple[str, ...] = (), exact: bool = True) -> Unit:
    """A unit with random weights and the parameters ``names``, which are dyadic if ``exact``."""
    draw = dyadic if exact else torch.randn
    parameters = {}
    for name in names:
        if name.startswith('sign'):
            size = numbers.in_channels * (1 if numbers.merges or numbers.shares_weights else numbers.num_bases)
        elif name == 'scale':
            size = numbers.weight_rows
        else:
            size = numbers.out_channels * (1 if numbers.merges or numbers.shares_weights else numbers.num_bases)
        parameters[name] = draw(size)
    weight = random_signs(numbers.weight_rows, numbers.in_channels // numbers.groups, *numbers.kernel_size)
    return Unit(numbers, weight, parameters)


def convolve_branch(unit: Unit, x: Tensor, base: int) -> Tensor:
    """Convolves the signs of one branch with the weights of one base."""
    g = unit.geometry
    rate = g.dilations[base]
    padding = g.padding
    if padding is None:
        padding = [rate * (size - 1) // 2 for size in g.kernel_size]
    x = F.pad(signs(x), (padding[1], padding[1], padding[0], padding[0]), value=g.padding_value)
    weight = signs(unit.weight)[base * g.out_channels : (base + 1) * g.out_channels]
    return F.conv2d(x, weight, stride=g.stride, dilation=rate, groups=g.groups)


def convolve(unit: Unit, x: Tensor) -> Tensor:
    """The integers that :func:`mmgroupnet.ops.convolve` must give."""
    g = unit.geometry
    inputs = x.split(g.in_channels, dim=1)
    if g.shares_weights:
        outs = [convolve_branch(unit, branch, 0) for branch in inputs]
    else:
        outs = [convolve_branch(unit, inputs[k if len(inputs) > 1 else 0], k) for k in range(g.num_bases)]
    return torch.cat(outs, dim=1).to(torch.int32)


def run_unit(unit: Unit, inputs: list[Tensor], shortcut: list[Tensor] | None, near: list[float]) -> list[Tensor]:
    """Runs a unit on its branches. The smallest magnitudes among the inputs of its signs are appended to ``near``."""
    g = unit.geometry

    def before_sign(x: Tensor, branch: int) -> Tensor:
        scale = unit.parameter('sign_scale', branch, g.in_channels)
        shift = unit.parameter('sign_shift', branch, g.in_channels)
        x = x if scale is None else x * scale
        x = x if shift is None else x + shift
        near.append(x.abs().min().item())
        return x

    def scaled(x: Tensor, base: int) -> Tensor:
        scale = unit.parameter('scale', base, g.out_channels)
        return x if scale is None else x * scale

    if g.merges:
        x = before_sign(inputs[0], 0)
        sums = [sum(scaled(convolve_branch(unit, x, base), base) for base in range(g.num_bases))]
    elif g.shares_weights:
        sums = [scaled(convolve_branch(unit, before_sign(x, 0), 0), 0) for x in inputs]
    else:
        sums = [
            scaled(convolve_branch(unit, before_sign(inputs[k if len(inputs) > 1 else 0], k), k), k)
            for k in range(g.num_bases)
        ]
    outs = []
    for k, out in enumerate(sums):
        bias = unit.parameter('bias', k, g.out_channels)
        out = out if bias is None else out + bias
        out = out.clamp(min=0) if g.relu else out
        scale, shift = (unit.parameter(name, k, g.out_channels) for name in ('norm_scale', 'norm_shift'))
        out = out if scale is None else out * scale
        out = out if shift is None else out + shift
        added = {Residual.NONE: None, Residual.INPUT: inputs, Residual.SHORTCUT: shortcut}[g.residual]
        outs.append(out if added is None else out + added[k if len(added) > 1 else 0])
    return outs


@dataclass
class Block:
    """All arguments of :func:`mmgroupnet.ops.run_block` except the input."""

    connection: Connection
    num_bases: int
    units: list[Unit]
    merge_scales: Tensor | None = None
    gate: Tensor | None = None
    shortcut: Unit | None = None
    shortcut_map: Tensor | None = None

    def run_op(self, x: Tensor) -> Tensor:
        return ops.run_block(x, *self.arguments)

    @property
    def arguments(self) -> tuple:
        units = [*([] if self.shortcut is None else [self.shortcut]), *self.units]
        tensors = [tensor for unit in units for tensor in unit.tensors]
        return (
            int(self.connection),
            self.num_bases,
            self.merge_scales,
            self.gate,
            [number for unit in units for number in unit.numbers],
            [tensor for tensor in tensors if tensor is not None],
            [place for place, tensor in enumerate(tensors) if tensor is not None],
            self.shortcut is not None,
            self.shortcut_map,
        )

    def run_simulation(self, x: Tensor) -> Tensor:
        pairs = [(unit.geometry, unit.tensors) for unit in self.units]
        shortcut = None if self.shortcut is None else (self.shortcut.geometry, self.shortcut.tensors)
        return ops.simulation.run_block(
            x, self.connection, self.num_bases, self.merge_scales, self.gate, pairs, shortcut, self.shortcut_map
        )

    def run_oracle(self, x: Tensor) -> tuple[Tensor, float]:
        """The output, and the smallest magnitude among the inputs of all signs."""
        near: list[float] = []
        branches = list(x.split(self.units[0].geometry.in_channels, dim=1))
        if self.connection in (Connection.MERGED, Connection.GATED):
            branches = connect(branches, self.merge_scales, self.gate if self.connection == Connection.GATED else None)
        if self.shortcut is not None:
            shortcut = run_unit(self.shortcut, branches, None, near)
        elif self.shortcut_map is not None:
            shortcut = list(self.shortcut_map.split(self.units[-1].geometry.out_channels, dim=1))
        else:
            shortcut = branches
        for unit in self.units:
            branches = run_unit(unit, branches, shortcut, near)
        return torch.cat(branches, dim=1), min(near)


def connect(branches: list[Tensor], merge_scales: Tensor | None, gate: Tensor | None) -> list[Tensor]:
    """Without a gate only the merged branch; with a gate all branches, each mixed with the merged one."""
    if merge_scales is None:
        merge_scales = torch.full((len(branches),), 1 / len(branches))
    merged = sum(scale * branch for scale, branch in zip(merge_scales, branches, strict=True))
    if gate is None:
        return [merged]
    return [share * branch + (1 - share) * merged for share, branch in zip(gate, branches, strict=True)]
