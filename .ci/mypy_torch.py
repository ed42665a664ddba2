"""A mypy plugin: what a torch module holds by a name that its class does not declare is of any type.

``nn.Module.__getattr__`` says that it returns a tensor or a module. A module holds numbers, geometries and parts of
known classes as well, so that mypy would refuse most uses of a module whose class it does not see, such as those of
mmdet. Attributes that a class declares are checked as ever.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny

_MODULE = 'torch.nn.modules.module.Module.'


class TorchModules(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _any if fullname.startswith(_MODULE) else None


def _any(context: AttributeContext) -> Type:
    declared = context.default_attr_type
    return (
        AnyType(TypeOfAny.special_form)
        if str(declared) == 'torch._tensor.Tensor | torch.nn.modules.module.Module'
        else declared
    )


def plugin(version: str) -> type[Plugin]:
    return TorchModules
