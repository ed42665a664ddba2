"""Exported and traced programs of models."""

import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Maps(nn.Module):
    """Returns all output maps of a model as one flat tuple, which both kinds of programs support.

    Args:
        model: The model.
        run: A function that calls the model: ``run(model, inputs)``. Default: ``model(*inputs)``.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Sequence[Tensor]], object] | None = None) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outs = self.model(*inputs) if self.run is None else self.run(self.model, inputs)
        return tuple(tree_leaves(outs))


def export(model: nn.Module, *inputs: Tensor, reload: bool = False) -> nn.Module:
    """The exported program; with ``reload`` it is saved and loaded again."""
    program = torch.export.export(model, inputs)
    if reload:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    return program.module()


def trace(model: nn.Module, *inputs: Tensor, reload: bool = False) -> nn.Module:
    """The traced program; with ``reload`` it is saved and loaded again."""
    program = torch.jit.trace(model, inputs, check_trace=False)
    if reload:
        file = io.BytesIO()
        torch.jit.save(program, file)
        file.seek(0)
        program = torch.jit.load(file)
    return program
