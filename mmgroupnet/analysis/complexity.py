"""Parameters, sizes and operations of a model, float and binary, layer by layer.

Operations are multiply-accumulates of convolutions, linear layers and other matrix products such as those of attention.
Each counts as one operation, as in the figures of Group-Net (a float ResNet-18 has 1.8e9 at 224x224). Norms,
activations, additions and signs are elementwise and not counted. Operations in the K bases of binary layers are binary
(BOPs), all others are float (FLOPs); OPs = FLOPs + BOPs / 64.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from mmgroupnet.analysis.packed_operations import binary_operations
from mmgroupnet.layers import BinaryConv2d

# Binary operations that one 64-bit instruction computes.
BOPS_PER_OP = 64


@dataclass
class Complexity:
    """The counts of a layer, a part or a model.

    Args:
        name: Its name.
        binary_layers: Number of binary layers.
        float_layers: Number of float convolutions and linears.
        parameters: Number of all parameters.
        binary_parameters: Number of latent weights of binary layers.
        bytes_now: Bytes of parameters and buffers in training.
        bytes_packed: The same with one bit per binary weight, in whole bytes per output channel.
        flops: Float operations.
        bops: Binary operations.
        linear_flops: Float operations in linear layers.
    """

    name: str
    binary_layers: int = 0
    float_layers: int = 0
    parameters: int = 0
    binary_parameters: int = 0
    bytes_now: int = 0
    bytes_packed: int = 0
    flops: int = 0
    bops: int = 0
    linear_flops: int = 0

    @property
    def ops(self) -> float:
        """OPs = FLOPs + BOPs / 64."""
        return self.flops + self.bops / BOPS_PER_OP

    @property
    def linear_share(self) -> float:
        """Share of float linear layers in the OPs."""
        return self.linear_flops / self.ops if self.ops else 0.0


def total(rows: Iterable[Complexity], name: str = 'total') -> Complexity:
    """The sum of rows."""
    rows = list(rows)
    counts = [field.name for field in fields(Complexity) if field.name != 'name']
    return Complexity(name, **{count: sum(getattr(row, count) for row in rows) for count in counts})


def count_operations(model: nn.Module, run: Callable[[], object]) -> tuple[dict[str, int], dict[str, int]]:
    """Counts the operations of a run, by the name of the module that computes them.

    Convolutions and products are counted but not computed: their results are zeros of the right shape, so this takes
    little time for inputs of any size.

    Args:
        model: The model; it should be in evaluation mode.
        run: Calls it.

    Returns:
        Float operations, and binary operations.
    """
    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []
    flops: dict[str, int] = defaultdict(int)
    bops: dict[str, int] = defaultdict(int)

    def enter(module: nn.Module, args: object) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: object, out: Any) -> None:
        stack.pop()
        if module not in names:
            return
        kinds = {base.__name__ for base in type(module).__mro__}
        if _is_binary_layer(module):
            bases = module.num_bases if module.merges else 1  # Folded branches have separate outputs.
            bops[names[module]] += out.numel() * module.weight[0].numel() * bases
        elif kinds & {'DeformConv2d', 'ModulatedDeformConv2d'}:  # mmcv's ops, which torch's counter does not see.
            flops[names[module]] += out.numel() * module.weight[0].numel()

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            packet = func._overloadpacket
            owner = next((names[module] for module in reversed(stack) if module in names), '')
            if packet is torch.ops.mmgroupnet.run_block:
                x, connection, _, _, _, geometry, _, _, has_shortcut, _ = args
                bops[owner] += binary_operations(x.shape, connection, geometry, has_shortcut)
            if packet not in flop_registry:
                with self:
                    out = func.decompose(*args, **kwargs)
                return func(*args, **kwargs) if out is NotImplemented else out
            out = func(*tree_map_only(Tensor, _as_meta, args), **tree_map_only(Tensor, _as_meta, kwargs))
            if not any(map(_is_binary_layer, stack)):
                # Torch counts a multiply-accumulate as two.
                flops[owner] += flop_registry[packet](*args, **kwargs, out_val=out) // 2
            device = next(value.device for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
            return tree_map_only(Tensor, lambda value: torch.zeros_like(value, device=device), out)

    fused_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as exits:
        exits.callback(torch.backends.mha.set_fastpath_enabled, fused_attention)
        torch.backends.mha.set_fastpath_enabled(False)  # The fast path is one operation that torch cannot count.
        exits.callback(module_hooks.register_module_forward_pre_hook(enter).remove)
        exits.callback(module_hooks.register_module_forward_hook(leave).remove)
        exits.enter_context(torch.no_grad())
        exits.enter_context(Counter())
        run()
    return dict(flops), dict(bops)


def _as_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='meta')


def _is_binary_layer(module: nn.Module) -> bool:
    return isinstance(module, BinaryConv2d) and module.is_binary


def _is_float_layer(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | BinaryConv2d):
        return not _is_binary_layer(module)
    return bool({base.__name__ for base in type(module).__mro__} & {'DeformConv2d', 'ModulatedDeformConv2d'})


def analyze(model: nn.Module, run: Callable[[], object] | None = None) -> list[Complexity]:
    """Counts layers, parameters, bytes and operations of every module that has its own.

    Args:
        model: The model.
        run: Calls it with the input whose operations are counted. Default: None, no operations.

    Returns:
        A row per module, in the model's order; their sums are those of the model.
    """
    was_training = model.training
    model.eval()
    try:
        flops, bops = ({}, {}) if run is None else count_operations(model, run)
    finally:
        model.train(was_training)
    rows = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        is_binary, is_float = _is_binary_layer(module), _is_float_layer(module)
        row = Complexity(name, int(is_binary), int(is_float), flops=flops.get(name, 0), bops=bops.get(name, 0))
        if isinstance(module, nn.Linear):
            row.linear_flops = row.flops
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in seen or key in module._non_persistent_buffers_set:
                continue
            seen.add(id(tensor))
            size = tensor.numel() * tensor.element_size()
            is_bits = is_binary and key == 'weight'
            row.bytes_now += size
            row.bytes_packed += len(tensor) * math.ceil(tensor[0].numel() / 8) if is_bits else size
            if key in module._parameters:
                row.parameters += tensor.numel()
                row.binary_parameters += tensor.numel() if is_bits else 0
        if any(getattr(row, field.name) for field in fields(row) if field.name != 'name'):
            rows.append(row)
    return rows


# Modules of a backbone whose children are its stages.
_STAGE_LISTS = ('stages', 'layers', 'blocks', 'features')


def _part_of(name: str, leaves: set[str]) -> str:
    """The part of the model that a module belongs to: a stage of the backbone, or a child of the model."""
    keys = name.split('.')
    if keys[0] != 'backbone' or len(keys) < 2:
        return keys[0] or 'the model itself'
    if keys[1] in _STAGE_LISTS and len(keys) > 2:
        return '.'.join(keys[:3])
    # Single layers and norms between the stages.
    return 'backbone, rest' if f'backbone.{keys[1]}' in leaves else '.'.join(keys[:2])


def by_part(model: nn.Module, rows: Sequence[Complexity]) -> list[Complexity]:
    """Sums of the rows of :func:`analyze` by part: the stages of the backbone, neck, heads."""
    leaves = {name for name, module in model.named_modules() if not any(True for _ in module.children())}
    parts: dict[str, list[Complexity]] = defaultdict(list)
    for row in rows:
        parts[_part_of(row.name, leaves)].append(row)
    return [total(found, part) for part, found in parts.items()]


def table(rows: Sequence[Complexity], has_operations: bool = True) -> str:
    """Rows and their total as text."""
    header = ['part', 'binary layers', 'float layers', 'parameters', '1-bit', 'MB', 'MB packed']
    if has_operations:
        header += ['FLOPs', 'BOPs', 'OPs', 'in linears']
    lines = [header]
    for row in [*rows, total(rows)]:
        share = row.binary_parameters / row.parameters if row.parameters else 0
        line = [row.name, f'{row.binary_layers}', f'{row.float_layers}', f'{row.parameters:,}', f'{share:.1%}']
        line += [f'{row.bytes_now / 1e6:.2f}', f'{row.bytes_packed / 1e6:.2f}']
        if has_operations:
            line += [f'{value:.4g}' for value in (row.flops, row.bops, row.ops)] + [f'{row.linear_share:.1%}']
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return '\n'.join(
        '  '.join(
            value.ljust(width) if column == 0 else value.rjust(width)
            for column, (value, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
