"""Compares lean training with plain autograd: outputs, gradients and running statistics must be equal."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, Chain, can_run_chain, run_chain
from mmgroupnet.models import GroupNetResNet
from mmgroupnet.ops import Residual

DECOMPOSITIONS = ('soft_gate', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'lbd')


def randomise(model: nn.Module) -> nn.Module:
    """Gives batch norms random scales and shifts, so that no input of a sign is exactly zero: rounding would decide its
    sign."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


def set_lean(model: nn.Module, is_lean: bool) -> nn.Module:
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.memory_efficient = is_lean
    return model


def relative(value: Tensor, expected: Tensor) -> float:
    """Distance of a gradient relative to the expected norm; norms below 1, as of sums that cancel, count as 1."""
    return (value - expected).norm().item() / max(expected.norm().item(), 1.0)


Run = Callable[..., Sequence[Tensor]]


def outputs_and_gradients(model: nn.Module, inputs: Sequence[Tensor], run: Run) -> dict[str, Tensor]:
    """Outputs, gradients of inputs and parameters for one random gradient of the outputs, and buffers."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outs = run(model, *inputs)
    generator = torch.Generator().manual_seed(3)
    # Always drawn in float32, since generators give other numbers in double precision.
    upstream = [torch.randn(out.shape, generator=generator).to(out) for out in outs]
    sum((out * gradient).sum() for out, gradient in zip(outs, upstream, strict=True)).backward()
    found = {f'output {index}': out.detach() for index, out in enumerate(outs)}
    found |= {f'input {index}': x.grad for index, x in enumerate(inputs)}
    found |= {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found | {name: buffer.double() for name, buffer in model.named_buffers()}


def call(model: nn.Module, *inputs: Tensor) -> Sequence[Tensor]:
    return model(*inputs)


def assert_lean_is_plain(model: nn.Module, inputs: Sequence[Tensor], tolerance: float, run: Run = call) -> None:
    lean, plain = set_lean(copy.deepcopy(model), True), set_lean(copy.deepcopy(model), False)
    found, expected = (outputs_and_gradients(each, inputs, run) for each in (lean, plain))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None or not found[name].any(), name
        elif name.endswith('running_mean'):  # may be close to zero
            assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: name + text)
        else:
            assert relative(found[name], value) <= tolerance, (name, relative(found[name], value))


def assert_single_precision(model: nn.Module, x: Tensor, tolerance: float) -> None:
    """Compares lean and plain training in single precision.

    The two sum in different orders. The allowed distance of a gradient is the largest of these: the tolerance relative
    to its norm; ten times the distance between plain training in single and in double precision, for sums that cancel;
    a tenth of the tolerance relative to the largest gradient, for tiny gradients that are mostly rounding, such as of a
    bias in front of a batch norm. If the gradient is zero in double precision, the tolerance is relative to the largest
    gradient.
    """
    lean, plain = set_lean(copy.deepcopy(model), True), set_lean(copy.deepcopy(model), False)
    found, expected = (outputs_and_gradients(each, [x], call) for each in (lean, plain))
    exact = outputs_and_gradients(set_lean(copy.deepcopy(model).double(), False), [x.double()], call)
    largest = max(value.norm().item() for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is not None:
            rounding = (value.double() - exact[name]).norm().item()
            is_zero = exact[name].norm().item() <= 1e-12 * largest
            size = largest if is_zero else value.norm().item()
            allowed = max(tolerance * size, 10 * rounding, tolerance / 10 * largest, 1e-6)
            assert (found[name] - value).norm().item() <= allowed, name


class PlainChain(nn.Module):
    """A chain as an ordinary module: runs lean if possible, otherwise plain, unit by unit."""

    def __init__(self, chain: Chain, gate: Tensor | None = None, scales: Tensor | None = None) -> None:
        super().__init__()
        self.chain_of = chain
        units = (*chain.units, *([] if chain.shortcut is None else [chain.shortcut]))
        self.convs = nn.ModuleList(unit.conv for unit in units)
        self.norms = nn.ModuleList(unit.norm for unit in units)
        self.gate = None if gate is None else nn.Parameter(gate)
        self.scales = None if scales is None else nn.Parameter(scales)

    def chain(self) -> Chain:
        units = [
            unit._replace(conv=conv, norm=norm)
            for unit, conv, norm in zip(
                (*self.chain_of.units, self.chain_of.shortcut), self.convs, self.norms, strict=False
            )
        ]
        count = len(self.chain_of.units)
        shortcut = None if self.chain_of.shortcut is None else units[count]
        return self.chain_of._replace(units=tuple(units[:count]), shortcut=shortcut)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        chain = self.chain()
        if can_run_chain(chain, x, self):
            return (run_chain(chain, x, self.gate, self.scales),)
        num_bases = chain.num_bases
        branches = list(x.chunk(num_bases, dim=1))
        if self.gate is not None:
            merged = sum(scale * branch for scale, branch in zip(self.scales, branches, strict=True))
            branches = [gate * x + (1 - gate) * merged for gate, x in zip(self.gate, branches, strict=True)]
        connected = torch.cat(branches, dim=1)
        shortcut = connected
        if chain.shortcut is not None:
            rows = torch.cat(connected.chunk(num_bases, dim=1))
            shortcut = torch.cat(chain.shortcut.norm(chain.shortcut.conv(rows)).chunk(num_bases), dim=1)
        current = connected
        for unit in chain.units:
            out = unit.norm(unit.conv(current).relu())
            if unit.residual == Residual.INPUT:
                out = out + current
            elif unit.residual == Residual.SHORTCUT:
                out = out + shortcut
            current = out
        return (current,)


def small_network(**options) -> GroupNetResNet:
    """A ResNet-18 of few channels with two bases, in training mode."""
    torch.manual_seed(0)
    return randomise(GroupNetResNet(**dict(depth=18, num_bases=2, base_channels=8) | options)).train()


def block_of(network: GroupNetResNet, stage: int) -> nn.Module:
    """A block whose shortcut is the identity."""
    return network.stages[stage][1]


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that the graph of ``run`` keeps for the backward pass, without the parameters."""
    storages: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        out = run()
    del out
    return sum(storages.values())
