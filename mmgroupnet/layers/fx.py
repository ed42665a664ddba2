"""Makes each binary layer one node for torch.fx; the node runs the layer as usual when the traced graph runs."""

import functools
from collections.abc import Callable
from typing import Any

import torch.fx
from torch import Tensor, nn


def trace_as_leaf(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a ``forward`` that torch.fx cannot look into (mmengine's ``efficient_conv_bn_eval`` traces with it).

    Args:
        forward: Takes one map, followed by arguments that are not tensors.
    """

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: object, **kwargs: object) -> Tensor:
        x, *others = args
        if not isinstance(x, torch.fx.Proxy):
            return forward(self, *args, **kwargs)
        tracer: Any = x.tracer
        if not (others or kwargs):
            return tracer.create_proxy('call_module', tracer.path_of_module(self), (x,), {})

        # Modules cannot be arguments of a node, so a function holds them.
        def call(x: Tensor) -> Tensor:
            return self(x, *others, **kwargs)

        return tracer.create_proxy('call_function', call, (x,), {})

    return wrapper
