"""How torch.fx sees binary layers: as one node each, which runs as ever when the traced graph runs."""

import functools
from collections.abc import Callable

import torch.fx
from torch import Tensor, nn


def trace_as_leaf(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a ``forward`` that torch.fx cannot look into (mmengine's ``efficient_conv_bn_eval`` traces with it).

    Args:
        forward: Takes one map and, behind it, what is no tensor.
    """

    @functools.wraps(forward)
    def wrapper(self: nn.Module, x: Tensor, *args: object) -> Tensor:
        if not isinstance(x, torch.fx.Proxy):
            return forward(self, x, *args)
        tracer = x.tracer
        if not args:
            return tracer.create_proxy('call_module', tracer.path_of_module(self), (x,), {})

        # Modules cannot be arguments of a node: a function holds them.
        def call(x: Tensor) -> Tensor:
            return self(x, *args)

        return tracer.create_proxy('call_function', call, (x,), {})

    return wrapper
