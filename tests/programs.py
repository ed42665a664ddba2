"""Models as programs, exported and traced."""

import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Maps(nn.Module):
    """All maps that a model gives, as one tuple, which every kind of program can return.

    Args:
        model: The model.
        run: Calls it with inputs, as ``run(model, inputs)``. Default: ``model(*inputs)``.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Sequence[Tensor]], object] | None = None) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outs = self.model(*inputs) if self.run is None else self.run(self.model, inputs)
        return tuple(tree_leaves(outs))


def export(model: nn.Module, *inputs: Tensor, reload: bool = False) -> nn.Module:
    """The exported program, on request saved and loaded."""
    program = torch.export.export(model, inputs)
    if reload:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    return program.module()


def trace(model: nn.Module, *inputs: Tensor, reload: bool = False) -> nn.Module:
    """The traced program, on request saved and loaded."""
    program = torch.jit.trace(model, inputs, check_trace=False)
    if reload:
        file = io.BytesIO()
        torch.jit.save(program, file)
        file.seek(0)
        program = torch.jit.load(file)
    return program
