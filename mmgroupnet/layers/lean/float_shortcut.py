"""A full-precision shortcut that all branches of a lean chain share."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgroupnet.layers.branches import share
from mmgroupnet.layers.lean.path import is_as_written
from mmgroupnet.ops.passes import BranchGradient, Passes

# Layers without state: running them again gives the same output.
_TYPES = (nn.Conv2d, nn.AvgPool2d, nn.Identity)


def _layers(module: nn.Module) -> list[nn.Module]:
    return list(module) if type(module) is nn.Sequential else [module]


def is_float_shortcut(module: nn.Module) -> bool:
    """Whether a module consists of plain convolutions and average poolings."""
    layers = _layers(module)
    return all(type(layer) in _TYPES and is_as_written(layer, type(layer)) for layer in layers) and any(
        isinstance(layer, nn.Conv2d) for layer in layers
    )


class FloatShortcut:
    """SignConv's interface for a full-precision shortcut; the backward pass runs it again under autograd.

    Args:
        module: The module.
        branches: Folded branches of its input.
        passes: The backend.
    """

    gives_integers = False

    def __init__(self, module: nn.Module, branches: int, passes: Passes) -> None:
        self.layers = [copy.copy(layer) for layer in _layers(module)]  # strides and sizes, as they are now
        self.branches = branches
        self.dtype = passes.dtype

    @staticmethod
    def operands(tensors: Sequence) -> Sequence:
        """Values of the module's parameters."""
        return tensors

    def output_scale(self, operands: Sequence[Tensor]) -> Tensor:
        """One, per channel of the output."""
        weight = operands[0]
        return weight.new_ones(len(weight))

    def forward(self, x: Tensor, operands: Sequence[Tensor], observed: nn.Module | None = None) -> Tensor:
        """``(N, K*C_in, H, W)`` to ``(N, K*C_out, H', W')``."""
        # Without autocast's cache: a cast that was cached without autograd would have no gradient.
        is_half = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False) if is_half else nullcontext():
            values = iter(operands)
            for layer in self.layers:
                tensors = [next(values) for _ in layer.parameters()]
                x = self._run(layer, x, *tensors)
        return x

    def _run(self, layer: nn.Module, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if weight is None:
            return layer(x)  # it works on each channel separately, so branches do not matter
        is_linear = layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
        if is_linear and x.is_contiguous(memory_format=torch.channels_last):
            # The channels of a pixel are contiguous, branch by branch, so this is a matrix product without a copy.
            pixels = x.permute(0, 2, 3, 1).unflatten(3, (self.branches, -1))
            return F.linear(pixels, weight.flatten(1), bias).flatten(3).permute(0, 3, 1, 2)
        # Contiguous, since it may be a strided 1x1 convolution, see mmgroupnet.ops.float_convolution.
        return share(lambda part: layer._conv_forward(part, weight, bias), x.contiguous(), self.branches)

    def backward(
        self,
        gradient_of: BranchGradient,
        x: Tensor,
        operands: Sequence[Tensor],
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """As :meth:`SignConv.backward`."""
        x = x.detach().requires_grad_(needs_x)
        operands = [value.detach().requires_grad_(is_needed) for value, is_needed in zip(operands, needed, strict=True)]
        wanted = [value for value in operands if value.requires_grad]
        if not (needs_x or wanted):
            return None, [None] * len(needed)
        with torch.enable_grad():
            out = self.forward(x, operands)
        gradient = torch.cat([gradient_of(k, False) for k in range(self.branches)], dim=1).to(out.dtype)
        found = list(torch.autograd.grad(out, [x, *wanted] if needs_x else wanted, gradient))
        x_gradient = found.pop(0) if needs_x else None
        if x_gradient is not None and residual is not None:
            x_gradient = x_gradient + residual
        return x_gradient, [found.pop(0) if is_needed else None for is_needed in needed]
