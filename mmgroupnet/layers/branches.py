"""The folded branch axis: K homogeneous branches are one tensor ``(N, K*C, H, W)``, branch by branch along the
channels.

Layers broadcast, split, merge, gate and share branches through this file and :mod:`mmgroupnet.layers.merges`; the lean
and packed paths know the same layout.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmgroupnet.errors import UserError


def build_branch_norm(norm_cfg: Mapping, num_branches: int, num_channels: int) -> nn.Module:
    """The norm of folded branches, which normalises each of them as if it were alone.

    Args:
        norm_cfg: Config of the norm of one branch; ``num_groups`` of a ``GN`` counts the groups of one branch.
        num_branches: Number of branches.
        num_channels: Channels of one branch.

    Raises:
        UserError: If the norm takes the mean over all channels, and so over several branches.
    """
    cfg = dict(norm_cfg)
    if 'num_groups' in cfg:
        cfg['num_groups'] *= num_branches
    norm = build_norm_layer(cfg, num_branches * num_channels)[1]
    if num_branches > 1 and isinstance(norm, nn.LayerNorm):
        raise UserError(
            f'norm {dict(norm_cfg)} takes the mean over the channels of all {num_branches} branches: give one of each '
            'branch, such as BN, SyncBN, GN or IN'
        )
    return norm


def broadcast(x: Tensor, num_bases: int) -> Tensor:
    """Hands one map to every branch, ``(N, C, H, W)`` to ``(N, K*C, H, W)``."""
    return x if num_bases == 1 else x.repeat(1, num_bases, 1, 1)


def split(branches: Tensor, num_bases: int) -> tuple[Tensor, ...]:
    """The branches one by one, K views ``(N, C, H, W)``.

    ``chunk`` on purpose: the backward of K slices would fill K gradients of full size.
    """
    return branches.chunk(num_bases, dim=1)


def add_up(branches: Tensor, num_bases: int, mean: bool = False) -> Tensor:
    """The sum of the branches, or their mean, ``(N, K*C, ...)`` to ``(N, C, ...)``."""
    if branches.device.type == 'cpu' and branches.dtype in (torch.float32, torch.float64):
        # The result has the same floats. Torch (2.14) is eight times slower at summing over an axis in front of the
        # channels of a channels_last map.
        first, *rest = split(branches, num_bases)
        total = sum(rest, first)
        return total / num_bases if mean else total
    folded = branches.unflatten(1, (num_bases, -1))
    return folded.mean(dim=1) if mean else folded.sum(dim=1)


def share(module: Callable[[Tensor], Tensor], branches: Tensor, num_bases: int) -> Tensor:
    """Applies one module to every branch, ``(N, K*C, H, W)`` to ``(N, K*C', H', W')``.

    The module sees the branches as batch, ``(N*K, C, H, W)``: they share its parameters, and a batch norm takes joint
    statistics of all branches.
    """
    if num_bases == 1:
        return module(branches)
    batch = branches.shape[0]
    out = module(branches.unflatten(1, (num_bases, -1)).flatten(0, 1))
    return out.unflatten(0, (batch, num_bases)).flatten(1, 2)


class RealValuedSkip(nn.Module):
    """A module plus its input, ``(N, C, H, W)`` to the same.

    Public attributes of the module can be read from the skip, too: mmdet and mmseg read ``fpn_convs[i].conv`` and the
    like.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Copies, pickles and tracers read private names, and mean those of the skip itself.
            if name.startswith('_') or name == 'module':
                raise
            return getattr(self.module, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + x
