"""A mypy plugin: an attribute of a torch module that its class does not declare has the type ``Any``.

By its annotation, ``nn.Module.__getattr__`` returns a tensor or a module. But modules also have numbers and submodules
of known classes, and mypy would reject most uses of a module whose class it does not see, such as those of mmdet.
Attributes that a class declares are checked as usual.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny

_MODULE = 'torch.nn.modules.module.Module'
_UNDECLARED = f'torch._tensor.Tensor | {_MODULE}'


class TorchModules(Plugin):
    """mypy calls it for every attribute."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _any if fullname.startswith(f'{_MODULE}.') else None


def _any(context: AttributeContext) -> Type:
    is_declared = str(context.default_attr_type) != _UNDECLARED
    return context.default_attr_type if is_declared else AnyType(TypeOfAny.special_form)


def plugin(version: str) -> type[Plugin]:
    """mypy's entry point."""
    return TorchModules
