"""Synthetic checkpoints in the format of Group-Net's authors, and their network as a loop over branches.

This file does not import the package, and no branches are folded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Family(NamedTuple):
    """The options in which the published checkpoints differ."""

    depth: int
    scales: bool
    gates: bool
    stem_bias: bool = False


FAMILIES = {
    'r18-scales-gates': Family(18, scales=True, gates=True, stem_bias=True),
    'r18-gates': Family(18, scales=False, gates=True),
    'r18-scales': Family(18, scales=True, gates=False),
    'r34-scales': Family(34, scales=True, gates=False),
    'r34-scales-gates': Family(34, scales=True, gates=True),
}


def official_state_dict(
    family: Family, num_bases: int = 2, channels: int = 4, num_classes: int = 7, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A checkpoint with random weights, statistics, scales and gates, for which every map has both signs."""
    generator = torch.Generator().manual_seed(0)
    state_dict = {}

    def normal(name: str, *shape: int, mean: float = 0.0, std: float = 1.0) -> None:
        state_dict[name] = mean + std * torch.randn(shape, generator=generator, dtype=dtype)

    def uniform(name: str, *shape: int, mean: float = 1.0) -> None:
        state_dict[name] = mean * (0.5 + torch.rand(shape, generator=generator, dtype=dtype))

    def conv(name: str, *shape: int) -> None:
        # For signs and for normal images, the standard deviation of the output is one.
        normal(name, *shape, std=math.prod(shape[1:]) ** -0.5)

    def norm(name: str, width: int, mean: float) -> None:
        uniform(f'{name}.weight', width)
        normal(f'{name}.bias', width, std=0.3)
        normal(f'{name}.running_mean', width, mean=mean, std=0.2)
        uniform(f'{name}.running_var', width)
        state_dict[f'{name}.num_batches_tracked'] = torch.tensor(40)

    conv('conv1.weight', channels, 3, 7, 7)
    if family.stem_bias:
        normal('conv1.bias', channels)
    norm('bn1', channels, mean=1.2)
    width_in = channels
    for stage, count in enumerate(BLOCKS[family.depth]):
        width = channels * 2**stage
        for index in range(count):
            block = f'layer{stage + 1}.{index}'
            for i in range(num_bases):
                conv(f'{block}.conv1.{i}.weight', width, width_in, 3, 3)
                conv(f'{block}.conv2.{i}.weight', width, width, 3, 3)
                norm(f'{block}.bn1.{i}', width, mean=0.4)
                norm(f'{block}.bn2.{i}', width, mean=0.4)
                if family.scales:
                    uniform(f'{block}.scales.{i}', 1, mean=1 / num_bases)
            if family.gates and block != 'layer1.0':
                normal(f'{block}.block_gate', 1)
            if width_in != width:
                conv(f'{block}.downsample.conv.weight', width, width_in, 1, 1)
                norm(f'{block}.downsample.batch_norm', width, mean=0.0)
            width_in = width
    normal('fc.weight', num_classes, width_in)
    normal('fc.bias', num_classes)
    return state_dict


class OfficialNetwork:
    """The authors' network in evaluation mode, with a loop over its branches.

    Args:
        state_dict: Its weights, under the authors' names.
        family: Its family.
        num_bases: Number K of branches.
    """

    def __init__(self, state_dict: dict[str, Tensor], family: Family, num_bases: int) -> None:
        self.weights, self.family, self.num_bases = state_dict, family, num_bases

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias, mean, variance = (
            self.weights[f'{name}.{part}'].view(-1, 1, 1) for part in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def binary_conv(self, x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        weight = self.weights[f'{name}.weight']
        signs = F.pad(x.sign(), (padding,) * 4, value=1.0)
        return F.conv2d(signs, weight.sign() * weight.abs().mean(), stride=stride)

    def branch(self, x: Tensor, block: str, i: int, stride: int) -> Tensor:
        shortcut = x
        if f'{block}.downsample.conv.weight' in self.weights:
            shortcut = self.norm(
                self.binary_conv(x, f'{block}.downsample.conv', stride, 0), f'{block}.downsample.batch_norm'
            )
        out = self.norm(self.binary_conv(x, f'{block}.conv1.{i}', stride, 1).relu(), f'{block}.bn1.{i}') + shortcut
        return self.norm(self.binary_conv(out, f'{block}.conv2.{i}', 1, 1).relu(), f'{block}.bn2.{i}') + out

    def merge(self, outs: Sequence[Tensor], block: str) -> Tensor:
        if self.family.scales:
            return sum(self.weights[f'{block}.scales.{i}'] * out for i, out in enumerate(outs))
        total = outs[0]  # not a copy: as in the authors' code, the sum below also changes the first branch
        for out in outs[1:]:
            total += out
        return total / self.num_bases

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of ``(N, 3, H, W)``."""
        x = F.conv2d(images, self.weights['conv1.weight'], self.weights.get('conv1.bias'), stride=2, padding=3)
        merged = self.norm(F.max_pool2d(x, 3, 2, 1), 'bn1')
        outs = None
        for stage, count in enumerate(BLOCKS[self.family.depth]):
            for index in range(count):
                block = f'layer{stage + 1}.{index}'
                inputs = [merged] * self.num_bases
                if self.family.gates and outs is not None:
                    gate = self.weights[f'{block}.block_gate'].sigmoid()
                    inputs = [gate * out + (1 - gate) * merged for out in outs]
                stride = 2 if stage > 0 and index == 0 else 1
                outs = [self.branch(given, block, i, stride) for i, given in enumerate(inputs)]
                merged = self.merge(outs, block)
        return merged.mean(dim=(2, 3)) @ self.weights['fc.weight'].T + self.weights['fc.bias']
