"""Memory layouts: third-party modules are kept on contiguous NCHW tensors, where binary layers write channels_last.

It is the readers that are guarded, not the writers: binary layers stand in the midst of other people's modules, without
a border where maps could be turned around once. Turning them around behind every binary layer would cost a pass over
each map, and keep nothing contiguous: the float convs of a packed model write channels_last, too.
"""

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def _contiguous_inputs(module: nn.Module, inputs: tuple) -> tuple:
    return tree_map_only(Tensor, Tensor.contiguous, inputs)


def _contiguous_outputs(module: nn.Module, inputs: tuple, out: object) -> object:
    return tree_map_only(Tensor, Tensor.contiguous, out)


def is_guard(hook: object) -> bool:
    """Whether a hook is one of :func:`guard_foreign_code`."""
    return hook in (_contiguous_inputs, _contiguous_outputs)


def guard_foreign_code(model: nn.Module) -> None:
    """Hands maps to code of others in the order that it expects, ``(N, C, H, W)``.

    - mmcv's kernels (RoIAlign, deformable convolutions and others) read the memory in that order without a look at the
      strides: of a channels_last map they would take the wrong pixels, silently. Modules of ``mmcv.ops`` get contiguous
      inputs and weights, those inside them too.
    - What is behind a head, losses and post-processing, looks at its outputs with ``view``, which refuses a
      channels_last map, and so does what is behind the ``features`` of a VGG or an AlexNet. Modules that are called
      something with ``head``, and the last of ``features``, give contiguous outputs.

    Args:
        model: A model with binary layers; its modules get a hook, once.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith('mmcv.ops.'):
            for parameter in module.parameters():  # of the conv that makes its offsets, too
                parameter.data = parameter.data.contiguous()
            if _contiguous_inputs not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_contiguous_inputs)
        # Of a list of heads each entry is one.
        words = [word for word in name.split('.') if not word.isdigit()]
        writer = module if words and words[-1].endswith('head') else None
        if isinstance(module, nn.Sequential) and len(module) and words[-1:] == ['features']:
            writer = module[-1]  # a VGG calls them one by one
        if writer is not None and _contiguous_outputs not in writer._forward_hooks.values():
            writer.register_forward_hook(_contiguous_outputs)
