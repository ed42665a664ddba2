"""Decides whether layers run lean or plain, by facts that are equal in all processes; observers have no influence."""

import logging
from collections.abc import Callable, Iterable
from functools import cache, wraps

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_traced() -> bool:
    """Whether a tracer, an exporter or a functorch transform is active, which has to see the operations."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    return torch._C._are_functorch_transforms_active()


def wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records operations on tensors, and no tracer, exporter or functorch transform is active."""
    if not torch.is_grad_enabled() or is_traced():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def first_derivatives(backward: Callable) -> Callable:
    """Like torch's ``once_differentiable``, but raises at ``create_graph=True``, with an error that names the option to
    set."""

    @wraps(backward)
    def wrapper(*args: object) -> object:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'create_graph=True: lean training has only first derivatives, give '
                'binary_cfg=dict(memory_efficient=False) for second ones'
            )
        return backward(*args)

    return wrapper


def is_as_written(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a module uses the ``forward`` of one of some classes: neither its class nor the instance overrides it."""
    return 'forward' not in module.__dict__ and any(type(module).forward is each.forward for each in classes)


def has_global_hooks() -> bool:
    """Whether global module hooks are registered."""
    return any(getattr(torch_module, f'_global{kind}') for kind in _HOOKS)


def is_hooked(module: nn.Module) -> bool:
    """Whether a module itself, without its submodules, has hooks of any kind."""
    return any(getattr(module, kind) for kind in _HOOKS)


def find_hooks(module: nn.Module, owner: nn.Module | None = None) -> str | None:
    """Finds a hook of any kind in a module or a submodule; the submodule has to be called for its hook to run.

    Args:
        module: The module.
        owner: The module whose names are used. Default: None, the module.

    Returns:
        The name of the submodule, or its class if the owner does not contain it; 'all modules' for global hooks; None
        without hooks.
    """
    if has_global_hooks():
        return 'all modules'
    for part in module.modules():
        if is_hooked(part):
            names = (name for name, other in (owner or module).named_modules() if other is part)
            return next(names, '') or type(part).__name__
    return None


def report_hooks(owner: nn.Module, hooked: str, is_synchronised: bool) -> None:
    """Warns once that a module runs plain because its submodules have hooks.

    Args:
        owner: The module.
        hooked: Where the hooks are.
        is_synchronised: Whether the module has batch norms that reduce over processes.

    Raises:
        RuntimeError: If ``is_synchronised``: plain and lean norms issue different collectives, and this process cannot
            know whether the others have the same hooks.
    """
    if is_synchronised:
        raise RuntimeError(
            f'{hooked} of {type(owner).__name__} has a hook, which lean training would bypass, and its synchronised '
            'batch norms must issue the same collectives in every process: remove the hook (a sign_observer watches '
            'signs), or give binary_cfg=dict(memory_efficient=False)'
        )
    _warn_once(
        f'{hooked} of {type(owner).__name__} has a hook: modules of this kind run plain while it is there, with the '
        'memory of plain autograd'
    )


def forget_warnings() -> None:
    """Forgets which warnings were logged: the rehearsal hides its log, so the run has to log them again."""
    _warn_once.cache_clear()


@cache
def _warn_once(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
