"""Keeps third-party modules on contiguous NCHW tensors, although binary layers write channels_last.

The readers are guarded, not the writers: binary layers are mixed with other people's modules, so there is no border
where maps could be converted once. Converting them behind every binary layer would cost a pass over each map, and maps
would still not be contiguous: the float convs of a packed model write channels_last, too.
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
    """Gives foreign code maps in the memory order that it expects, ``(N, C, H, W)``.

    - mmcv's kernels (RoIAlign, deformable convolutions and others) assume that order and ignore strides: from a
      channels_last map they would silently read the wrong pixels. Modules of ``mmcv.ops``, and modules inside them, get
      contiguous inputs and weights.
    - Losses and post-processing call ``view`` on the outputs of a head, which fails for a channels_last map; so does
      the code behind the ``features`` of a VGG or an AlexNet, and in the ``DCM`` of DMNet. Modules whose names end in
      ``head``, the last module of ``features``, and the convs of a ``DCM`` return contiguous outputs.

    Args:
        model: A model with binary layers; its modules get a hook, once.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith('mmcv.ops.'):
            for parameter in module.parameters():  # including those of the conv that computes its offsets
                parameter.data = parameter.data.contiguous()
            if _contiguous_inputs not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_contiguous_inputs)
        # Each entry of a list of heads is a head.
        words = [word for word in name.split('.') if not word.isdigit()]
        writers = [module] if words and words[-1].endswith('head') else []
        if isinstance(module, nn.Sequential) and len(module) and words[-1:] == ['features']:
            writers = [module[-1]]  # a VGG calls them one by one
        if type(module).__name__ == 'DCM':
            convs = (getattr(module, each, None) for each in ('filter_gen_conv', 'input_redu_conv'))
            writers = [conv for conv in convs if conv is not None]
        for writer in writers:
            if _contiguous_outputs not in writer._forward_hooks.values():
                writer.register_forward_hook(_contiguous_outputs)
