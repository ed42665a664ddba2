"""Whether layers run lean or plain: by what all processes know alike, never by what only watches."""

import logging
from collections.abc import Callable, Iterable
from functools import cache, wraps

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd will run over tensors, and nothing traces, exports or transforms what computes on them."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    if not any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    return not torch._C._are_functorch_transforms_active()


def first_derivatives(backward: Callable) -> Callable:
    """Decorates the ``backward`` of a lean autograd function: it refuses to be differentiated itself."""

    @wraps(backward)
    def wrapper(*args: object) -> object:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'create_graph=True: lean training has first derivatives alone, give '
                'binary_cfg=dict(memory_efficient=False) for second ones'
            )
        return backward(*args)

    return wrapper


def find_hooks(module: nn.Module) -> str | None:
    """The name of a module's first part that has hooks of any kind, which want the part to be called; 'all modules' for
    global hooks; None without hooks. The module itself counts as a part, under the name ''."""
    if any(getattr(torch_module, f'_global{kind}') for kind in _HOOKS):
        return 'all modules'
    for name, part in module.named_modules():
        if any(getattr(part, kind) for kind in _HOOKS):
            return name
    return None


def run_plain_for_hooks(owner: nn.Module, hooked: str, is_synchronised: bool) -> None:
    """Says once that a module runs plain because its parts have hooks.

    Args:
        owner: The module.
        hooked: Where the hooks are.
        is_synchronised: Whether the module has batch norms that reduce over processes.

    Raises:
        RuntimeError: If it has: plain and lean norms issue other collectives, and this process cannot know whether the
            others have the same hooks.
    """
    if is_synchronised:
        raise RuntimeError(
            f'{hooked} of {type(owner).__name__} has a hook, which lean training would bypass, and its synchronised '
            'batch norms must issue the same collectives in every process: remove the hook (a sign_observer watches '
            'signs), or give binary_cfg=dict(memory_efficient=False)'
        )
    _say(
        f'{hooked} of {type(owner).__name__} has a hook: modules of this kind run plain while it is there, with the '
        'memory of plain autograd'
    )


@cache
def _say(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
