"""Converts the checkpoints that Group-Net's authors published into classifiers of mmpretrain."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmgroupnet.errors import UserError
from mmgroupnet.models.backbones import GroupNetResNet

# The released code has these depths, and no bottlenecks.
_STAGE_BLOCKS = {depth: GroupNetResNet.arch_settings[depth][1] for depth in (18, 34)}
_NORM_VECTORS = ('weight', 'bias', 'running_mean', 'running_var')


class _Source(NamedTuple):
    """The source of a tensor of the classifier.

    Attributes:
        name: Its name in the classifier.
        official: Names in the authors' checkpoint, one, or one per branch; branches are folded by concatenation.
        shape: The shape of each source tensor.
    """

    name: str
    official: list[str]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Network:
    """The properties in which checkpoints differ.

    Attributes:
        depth: 18 or 34.
        num_bases: Number K of branches.
        has_scales: Whether blocks merge with learned scales.
        has_gates: Whether blocks but the first have a soft gate.
        stem_bias: Whether the conv of the stem has a bias.
        channels: Channels of the stem and of the first stage.
        num_classes: Number of classes according to the weight and to the bias of the last layer.
    """

    depth: int
    num_bases: int
    has_scales: bool
    has_gates: bool
    stem_bias: bool
    channels: int
    num_classes: tuple[int, int]

    def __str__(self) -> str:
        parts = [name for name, is_there in (('scales', self.has_scales), ('gates', self.has_gates)) if is_there]
        return f'ResNet-{self.depth}, K = {self.num_bases}, {" and ".join(parts) or "neither scales nor gates"}'

    @property
    def has_in_place_sum(self) -> bool:
        """Whether the sum of all branches replaces branch 0; without gates no branch is read separately."""
        return self.has_gates and not self.has_scales

    def sources(self) -> Iterator[_Source]:
        """The sources of all tensors of the classifier."""
        yield _Source('backbone.stem.0.weight', ['conv1.weight'], (self.channels, 3, 7, 7))
        if self.stem_bias:
            yield _Source('backbone.stem.0.bias', ['conv1.bias'], (self.channels,))
        yield from _norm('backbone.stem.2', ['bn1'], self.channels)
        channels_in = self.channels
        for stage, index in _blocks(self.depth):
            ours, theirs = f'backbone.stages.{stage}.{index}', f'layer{stage + 1}.{index}'
            channels = self.channels * 2**stage
            yield from self._block(ours, theirs, channels_in, channels)
            if self.has_gates and (stage, index) != (0, 0):
                yield _Source(f'{ours}.connection.theta', [f'{theirs}.block_gate'], (1,))
            channels_in = channels
        classes_by_weight, classes_by_bias = self.num_classes
        # If they disagree, it is unknown which is right: each is checked against the other.
        yield _Source('head.fc.weight', ['fc.weight'], (classes_by_bias, channels_in))
        yield _Source('head.fc.bias', ['fc.bias'], (classes_by_weight,))

    def _block(self, ours: str, theirs: str, channels_in: int, channels: int) -> Iterator[_Source]:
        branches = range(self.num_bases)
        for unit, given in ((0, channels_in), (1, channels)):
            convs = [f'{theirs}.conv{unit + 1}.{branch}.weight' for branch in branches]
            yield _Source(f'{ours}.units.{unit}.conv.weight', convs, (channels, given, 3, 3))
            norms = [f'{theirs}.bn{unit + 1}.{branch}' for branch in branches]
            yield from _norm(f'{ours}.units.{unit}.norm', norms, channels)
        if channels_in != channels:
            conv = f'{theirs}.downsample.conv.weight'
            yield _Source(f'{ours}.shortcut.0.weight', [conv], (channels, channels_in, 1, 1))
            yield from _norm(f'{ours}.shortcut.1', [f'{theirs}.downsample.batch_norm'], channels)
        if self.has_scales:
            yield _Source(f'{ours}.merge.scales', [f'{theirs}.scales.{branch}' for branch in branches], (1,))

    def model_cfg(self) -> dict[str, Any]:
        """Config of the classifier, with scoped types, so that it builds in any default scope."""
        num_classes = self.num_classes[0]
        return dict(
            type='mmpretrain.ImageClassifier',
            # Torchvision's normalisation: RGB, here in the range of bytes.
            data_preprocessor=dict(
                type='mmpretrain.ClsDataPreprocessor',
                num_classes=num_classes,
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                to_rgb=True,
            ),
            backbone=dict(
                type='mmgroupnet.GroupNetResNet',
                depth=self.depth,
                num_bases=self.num_bases,
                decomposition='soft_gate' if self.has_gates else 'gbd_v1',
                learned_scales=self.has_scales,
                in_place_sum=self.has_in_place_sum,
                stem_bias=self.stem_bias,
                base_channels=self.channels,
                out_indices=(len(_STAGE_BLOCKS[self.depth]) - 1,),
            ),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=num_classes,
                in_channels=self.channels * 2 ** (len(_STAGE_BLOCKS[self.depth]) - 1),
                loss=dict(type='mmpretrain.CrossEntropyLoss'),
            ),
        )


def _blocks(depth: int) -> list[tuple[int, int]]:
    """Stage and block of all blocks, counted from 0."""
    return [(stage, block) for stage, count in enumerate(_STAGE_BLOCKS[depth]) for block in range(count)]


def _norm(name: str, official: list[str], channels: int) -> Iterator[_Source]:
    for part in _NORM_VECTORS:
        yield _Source(f'{name}.{part}', [f'{norm}.{part}' for norm in official], (channels,))
    yield _Source(f'{name}.num_batches_tracked', [f'{norm}.num_batches_tracked' for norm in official], ())


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f'a {type(value).__name__}'


def _majority(values: Iterable[int], default: int) -> int:
    """The most frequent value, so that a single wrong tensor is the one that is reported."""
    return next((value for value, _ in Counter(values).most_common(1)), default)


def _without_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefix of data-parallel training from names; a name that exists both ways keeps it, and is then
    unknown."""
    given: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        short = str(name).removeprefix('module.')
        given[str(name) if short in given else short] = value
    return given


def _recognise(given: Mapping[str, Tensor]) -> _Network:
    """Infers from names and shapes which network a checkpoint belongs to.

    Raises:
        UserError: If there are no branches.
    """
    branches, channels = defaultdict(set), []
    for name, value in given.items():
        match = re.fullmatch(r'layer([1-4])\.(\d+)\.(conv[12]|bn[12])\.(\d+)\.weight', name)
        if match is None:
            continue
        branches[match[1], match[2], match[3]].add(int(match[4]))
        if isinstance(value, Tensor) and value.dim():
            channels.append(len(value) // 2 ** (int(match[1]) - 1))
    if not branches:
        raise UserError(
            'no checkpoint of the Group-Net authors: it has no branches, layer1.0.conv1.0.weight and so on. '
            f'It has {len(given)} unknown: {", ".join(given)}'
        )
    blocks = {(int(stage) - 1, int(block)) for stage, block, _ in branches}

    def have(pattern: str) -> bool:
        found = {match[1] for name in given if (match := re.fullmatch(rf'(layer\d+\.\d+)\.{pattern}', name))}
        return 2 * len(found) > len(blocks)

    depth = min(_STAGE_BLOCKS, key=lambda depth: len(blocks.symmetric_difference(_blocks(depth))))
    has_scales, has_gates = have(r'scales\.\d+'), have('block_gate')
    classes = [given[name] for name in ('fc.weight', 'fc.bias') if name in given]
    sizes = [len(value) for value in classes if isinstance(value, Tensor) and value.dim()] or [0]
    return _Network(
        depth=depth,
        num_bases=_majority((1 + max(numbers) for numbers in branches.values()), 1),
        has_scales=has_scales,
        has_gates=has_gates,
        # The published ResNet-18 with scales and gates has one; for other networks the names decide.
        stem_bias='conv1.bias' in given or (depth == 18 and has_scales and has_gates),
        channels=_majority(channels, 0),
        num_classes=(sizes[0], sizes[-1]),
    )


def _problems(given: Mapping[str, Tensor], network: _Network) -> list[str]:
    """All differences between a checkpoint and the tensors of this network."""
    expected = {name: source.shape for source in network.sources() for name in source.official}
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    misshapen = [
        f'{name} {_shape(given[name])} instead of {shape}'
        for name, shape in expected.items()
        if name in given and _shape(given[name]) != shape
    ]
    kinds = dict(missing=missing, unknown=unknown, misshapen=misshapen)
    problems = [f'{len(names)} {kind}: {", ".join(names)}' for kind, names in kinds.items() if names]
    if not (network.has_scales or network.has_gates):
        problems.append('scales.* and block_gate are both missing, and every family has one of them')
    return problems


def _warn_of_zeros(network: _Network, converted: Mapping[str, Tensor]) -> None:
    convs = [source.name for source in network.sources() if '.stages.' in source.name and len(source.shape) == 4]
    zeros = sum(int((converted[name] == 0).sum()) for name in convs)
    if zeros:
        print_log(
            f'{zeros} binary weights are exactly zero: they count as +1 here and as 0 in the code of the authors, so '
            'outputs differ a little',
            logger='current',
            level=logging.WARNING,
        )


def convert_official(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Converts a checkpoint of Group-Net's authors into a classifier of mmpretrain with the same outputs.

    The converter infers the network from names and shapes: ResNet-18 or 34, K, the number of channels and of classes,
    and the family:

    - scales and gates: soft gates with learned scales;
    - gates without scales: soft gates and the mean. Here the released code adds the branches up in place, so branch 0
      of every block passes the *sum* of all K outputs to the next block. The network was trained this way, so the
      classifier has ``in_place_sum=True``, see :class:`GroupNetResNet`;
    - scales without gates: GBD v1 with learned scales.

    The outputs equal those of the authors' network in evaluation mode. The only difference is sign(0), which is 0 there
    and +1 here, since one bit cannot hold a third value. A warning counts latent weights of exactly zero.

    Args:
        state_dict: The authors' ``state_dict``. Names may begin with ``module.``; ``num_batches_tracked``, which old
            versions of PyTorch did not write, may be missing everywhere.

    Returns:
        Config of the classifier, which ``mmpretrain.registry.MODELS`` builds, and its state dict, which it loads
        strictly; the tensors keep their dtypes.

    Raises:
        UserError: Listing all names that are missing, unknown, or of another shape, in one message.

    Source: Zhuang et al., Group-Net (arXiv 1909.09934), and the checkpoints of its released code.
    """
    given = _without_module(state_dict)
    if not any(name.endswith('.num_batches_tracked') for name in given):
        norms = [name.removesuffix('running_mean') for name in given if name.endswith('.running_mean')]
        given.update({f'{norm}num_batches_tracked': torch.tensor(0) for norm in norms})
    network = _recognise(given)
    problems = _problems(given, network)
    if problems:
        raise UserError(f'no complete checkpoint of the Group-Net authors, read as {network}: {"; ".join(problems)}')
    converted = {}
    for source in network.sources():
        tensors = [given[name].detach() for name in source.official]
        # All branches have seen the same batches.
        converted[source.name] = torch.cat(tensors) if source.shape else torch.stack(tensors).max()
    _warn_of_zeros(network, converted)
    if network.has_in_place_sum:
        for stage, block in _blocks(network.depth):
            converted[f'backbone.stages.{stage}.{block}.merge.sums_in_place'] = torch.tensor(1)
    return network.model_cfg(), converted
