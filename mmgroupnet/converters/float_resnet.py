"""Initialises a Group-Net from a full-precision ResNet of the same topology."""

import math
import re
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from mmgroupnet.checkpoints.match import listing
from mmgroupnet.checkpoints.pretrained import fetch_checkpoint
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.models.backbones import GroupNetResNet
from mmgroupnet.registry import WEIGHT_INITIALIZERS

# Standard deviation of the noise that makes bases differ, as a multiple of that of the conv's weights.
_NOISE = 0.5

_BLOCK = r'layer\d+\.\d+\.'


def _classifier_name(source_name: str) -> str:
    name = source_name.removeprefix('module.')
    if name.startswith(('backbone.', 'neck.', 'head.')):
        return name
    classifier = re.fullmatch(r'(?:fc|linear)\.(weight|bias)', name)
    return f'head.fc.{classifier[1]}' if classifier else f'backbone.{name}'


def to_classifier_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A float ResNet's weights under mmpretrain's names, ``backbone.`` and ``head.fc.``, from torchvision's or those of
    CIFAR ResNets (``linear.``), with or without a leading ``module.``."""
    return {_classifier_name(name): value for name, value in state_dict.items()}


def conv_weights(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Convs of a float ResNet, under torchvision's names without the index in ``downsample``.

    Args:
        state_dict: As for :func:`to_classifier_names`.

    Returns:
        The weights, and the names of tensors that are not part of such a network. Norms and the classifier are in
        neither.
    """
    weights, unknown = {}, []
    for source_name, value in state_dict.items():
        name = _classifier_name(source_name).removeprefix('backbone.').removeprefix('head.')
        if re.fullmatch(rf'({_BLOCK})?conv\d+\.weight', name):
            weights[name] = value
        elif re.fullmatch(rf'{_BLOCK}downsample\.\d+\.weight', name) and value.dim() == 4:
            weights[re.sub(r'\.\d+\.weight$', '.weight', name)] = value
        elif not re.fullmatch(
            rf'({_BLOCK})?(bn\d+|downsample\.\d+)\.(weight|bias|running_mean|running_var|num_batches_tracked)'
            r'|fc\.(weight|bias)',
            name,
        ):
            unknown.append(source_name)
    return weights, unknown


def _convs(backbone: GroupNetResNet) -> dict[str, nn.Module]:
    """The convs of a backbone by the names of :func:`conv_weights`."""
    convs = {'conv1.weight': backbone.stem[0]}
    for stage, blocks in enumerate(backbone.stages):
        for index, block in enumerate(blocks):
            prefix = f'layer{stage + 1}.{index}.'
            for number, unit in enumerate(block.units):
                convs[f'{prefix}conv{number + 1}.weight'] = unit.conv
            if block.shortcut is not None:
                (conv,) = (layer for layer in block.shortcut if isinstance(layer, nn.Conv2d | BinaryConv2d))
                convs[f'{prefix}downsample.weight'] = conv
    return convs


def _broadcast_to_bases(weight: Tensor, num_bases: int) -> Tensor:
    """Weights of K bases from the weights of one conv, ``(C_out, ...)`` to ``(K*C_out, ...)``."""
    if num_bases == 1:
        return weight
    bases = weight.repeat(num_bases, *[1] * (weight.dim() - 1))
    return bases + _NOISE * weight.std() * torch.randn_like(bases)


@WEIGHT_INITIALIZERS.register_module()
class FromFloatResNet:
    r"""Initialises a :class:`GroupNetResNet` from a full-precision ResNet of the same topology.

    Use it as ``init_cfg`` of the backbone::

        init_cfg = dict(type='mmgroupnet.FromFloatResNet', checkpoint='resnet18.pth')
        model = dict(backbone=dict(..., init_cfg=init_cfg))

    Only conv weights carry over, including those of the stem. Norms start afresh: their order is different here (sign,
    conv, ReLU, norm), so the statistics of the float network do not apply. Nor does its classifier: it knows other
    features, and its trained weights are much larger than new ones, so they take long to forget.

    All K bases get the weights of every conv in a residual block, each with its own normal noise of half the standard
    deviation :math:`\sigma` of the conv's weights. Equal bases would get equal gradients and stay equal. With noise the
    mean of their signs is a dithered quantisation: :math:`E[\operatorname{sign}(w + n)] =
    \operatorname{erf}(\sqrt{2} w / \sigma)` grows smoothly with w, while a single sign jumps. So the K bases together
    keep some of the weight's magnitude. Convs that all branches share have a single base and get no noise.

    Latent weights of a binary conv are scaled to the standard deviation of the random weights that they replace. Signs
    do not depend on it, and the norm behind the conv cancels the scale of its output. But a latent weight resists a
    change of its sign in proportion to its magnitude (Helwegen et al., "Latent weights do not exist", NeurIPS 2019),
    and those of a trained float network are large.

    Convs of the backbone's shortcuts that the source lacks (the CIFAR ResNets have shortcuts without parameters) keep
    their random weights; the log lists them.

    Args:
        checkpoint: A file, ``https://`` address or ``torchvision://`` name, with torchvision's, mmpretrain's or the
            CIFAR ResNets' names, loaded in torch's safe mode.

    Raises:
        UserError: If the source lacks a conv of the blocks or the stem, has an additional conv or one of another shape,
            has names that are not a ResNet's, or a conv whose weights are all equal or not finite; one error lists
            them.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Initialises a backbone in place."""
        if not isinstance(module, GroupNetResNet):
            raise UserError(f'init_cfg of {type(module).__name__}: FromFloatResNet initialises a GroupNetResNet alone')
        checkpoint = fetch_checkpoint(self.checkpoint)
        self._initialise(module, *conv_weights(checkpoint.get('state_dict', checkpoint)))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'{type(self).__name__}: load from {self.checkpoint}')

    @torch.no_grad()
    def _initialise(self, backbone: GroupNetResNet, weights: dict[str, Tensor], unknown: list[str]) -> None:
        convs = _convs(backbone)
        drawn = [name for name in convs if name not in weights and name.endswith('downsample.weight')]
        bases = {
            name: _broadcast_to_bases(weights[name], getattr(conv, 'num_bases', 1))
            for name, conv in convs.items()
            if name in weights
        }
        problems = {
            'missing': [name for name in convs if name not in weights and name not in drawn],
            'unexpected': [name for name in weights if name not in convs] + unknown,
            'of another shape': [
                f'{name} {tuple(value.shape)} instead of {tuple(convs[name].weight.shape)}, all bases together'
                for name, value in bases.items()
                if value.shape != convs[name].weight.shape
            ],
            'of equal or non-finite values': [
                name
                for name, value in bases.items()
                if isinstance(convs[name], BinaryConv2d) and not 0 < value.std() < math.inf
            ],
        }
        found = [f'{len(names)} {kind}: {listing(names)}' for kind, names in problems.items() if names]
        if found:
            raise UserError(
                f'checkpoint {self.checkpoint} is no float ResNet of the topology of the backbone ({"; ".join(found)})'
            )
        for name, value in bases.items():
            conv = convs[name]
            value = value.to(conv.weight)  # mmengine moves a model to its GPU before it initialises the weights
            if isinstance(conv, BinaryConv2d):
                conv.weight.copy_(value * (conv.weight.std() / value.std()))
                conv.start_quantizer()
            else:
                conv.weight.copy_(value)
        print_log(
            f'{len(bases)} of {len(convs)} convs start from the float ResNet {self.checkpoint}; '
            'norms start from their defaults' + (f'; not in it, and random: {", ".join(drawn)}' if drawn else ''),
            logger='current',
        )
