"""Memory layouts: binary layers write channels_last where that is faster, which not everybody's kernels can read."""

from torch import Tensor, nn


def _make_contiguous(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in inputs)


def guard_foreign_kernels(model: nn.Module) -> None:
    """Hands mmcv's ops contiguous maps and weights.

    Its kernels (RoIAlign, deformable convolutions and others) read the memory as if it were in the order ``(N, C, H,
    W)``, without a look at the strides: of a channels_last map they would take the wrong pixels, silently.

    Args:
        model: A model with binary layers; its modules of ``mmcv.ops`` get a hook, once, and contiguous weights.
    """
    for module in model.modules():
        if not type(module).__module__.startswith('mmcv.ops.'):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.contiguous()
        if _make_contiguous not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_make_contiguous)
