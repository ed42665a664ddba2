"""The folded branch axis: K homogeneous branches are one tensor ``(N, K*C, H, W)``, branch by branch along the
channels.

Only this file knows the layout. Everything else broadcasts, splits, merges, gates and shares through it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def broadcast(x: Tensor, num_bases: int) -> Tensor:
    """Hands one map to every branch, ``(N, C, H, W)`` to ``(N, K*C, H, W)``."""
    return x if num_bases == 1 else x.repeat(1, num_bases, 1, 1)


def split(branches: Tensor, num_bases: int) -> tuple[Tensor, ...]:
    """The branches one by one, K views ``(N, C, H, W)``.

    ``chunk`` on purpose: the backward of K slices would fill K gradients of full size.
    """
    return branches.chunk(num_bases, dim=1)


def share(module: Callable[[Tensor], Tensor], branches: Tensor, num_bases: int) -> Tensor:
    """Applies one module to every branch, ``(N, K*C, H, W)`` to ``(N, K*C', H', W')``.

    The module sees the branches as batch, ``(N*K, C, H, W)``: what it learns is shared, and a batch norm takes joint
    statistics of all branches.
    """
    if num_bases == 1:
        return module(branches)
    batch = branches.shape[0]
    out = module(branches.unflatten(1, (num_bases, -1)).flatten(0, 1))
    return out.unflatten(0, (batch, num_bases)).flatten(1, 2)


class Merge(nn.Module, ABC):
    """Merges branches into one map, ``(N, K*C, ...)`` to ``(N, C, ...)``; with K = 1 and without learned scales it is
    the identity.

    Args:
        num_bases: Number K of branches.
    """

    def __init__(self, num_bases: int) -> None:
        super().__init__()
        self.num_bases = num_bases

    @abstractmethod
    def forward(self, branches: Tensor) -> Tensor: ...

    @abstractmethod
    def weights(self, like: Tensor) -> Tensor:
        """What each branch is multiplied with, ``(K,)``, with dtype and device of ``like``."""

    def outputs_for_next(self, branches: Tensor) -> Tensor:
        """The tensor passed on to the next block and to :meth:`forward`, ``(N, K*C, H, W)``; by default unchanged."""
        return branches


class MeanMerge(Merge):
    """Plain average of the branches (journal version of Group-Net), see :class:`Merge`."""

    def forward(self, branches: Tensor) -> Tensor:
        if self.num_bases == 1:
            return branches
        return branches.unflatten(1, (self.num_bases, -1)).mean(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        return like.new_full((self.num_bases,), 1 / self.num_bases)


class InPlaceMerge(Merge):
    """Plain average of the branches, whose sum takes the place of branch 0's output, see :class:`Merge`.

    Where it merges without learned scales, Group-Net's released code adds the branches up in place. The merged map is
    the mean, but branch 0 hands the sum of all K outputs to the next block, and what was trained so needs it so.

    Shape: :meth:`outputs_for_next` puts the sum in place; the others take the branches as it left them.
    """

    def __init__(self, num_bases: int) -> None:
        super().__init__(num_bases)
        # Makes checkpoints say that they are wired so: no other merge takes them, and this one takes no others. An
        # integer, as a norm's counter of batches, is left alone by half() and double().
        self.register_buffer('sums_in_place', torch.tensor(1))

    def outputs_for_next(self, branches: Tensor) -> Tensor:
        """``(G_0, G_1, ..., G_{K-1})`` to ``(sum_j G_j, G_1, ..., G_{K-1})``."""
        if self.num_bases == 1:
            return branches
        parts = split(branches, self.num_bases)
        return torch.cat([sum(parts), *parts[1:]], dim=1)

    def forward(self, branches: Tensor) -> Tensor:
        return split(branches, self.num_bases)[0] / self.num_bases

    def weights(self, like: Tensor) -> Tensor:
        return torch.eye(1, self.num_bases, dtype=like.dtype, device=like.device)[0] / self.num_bases


class ScaledMerge(Merge):
    """Sum of the branches with one learned scale each, ``sum_i lambda_i * branch_i``, ``lambda ~ U(0, 1)`` at the
    start, see :class:`Merge`.

    Source: Group-Net, conference version (arXiv 1811.10413).
    """

    def __init__(self, num_bases: int) -> None:
        super().__init__(num_bases)
        self.scales = nn.Parameter(torch.rand(num_bases))

    def forward(self, branches: Tensor) -> Tensor:
        scales = self.scales.view(-1, *[1] * (branches.dim() - 1))
        return (branches.unflatten(1, (self.num_bases, -1)) * scales).sum(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        return self.scales.to(like)


def build_merge(num_bases: int, learned_scales: bool) -> Merge:
    """The mean, or a sum with learned scales, of ``num_bases`` branches."""
    return ScaledMerge(num_bases) if learned_scales else MeanMerge(num_bases)


def soft_connect(branches: Tensor, gate: Tensor, merge: Merge) -> Tensor:
    """Input of the next block's branches, ``c * branch + (1 - c) * merged`` with ``c = sigmoid(gate)`` (Group-Net, soft
    connections).

    ``c = 0`` hands the merged map to every branch (GBD v1), ``c = 1`` leaves the branches apart (GBD v3).

    Args:
        branches: Outputs of the K branches, ``(N, K*C, H, W)``.
        gate: Logits of the connection, ``(1,)`` or ``(K,)``.
        merge: Merges K branches into ``(N, C, H, W)``.

    Returns: ``(N, K*C, H, W)``.
    """
    c = gate.sigmoid().view(-1, 1, 1, 1)
    merged = merge(branches).unsqueeze(1)
    return (merged + c * (branches.unflatten(1, (merge.num_bases, -1)) - merged)).flatten(1, 2)


class SoftGate(nn.Module):
    """Soft connection in front of a block, see :func:`soft_connect`; ``theta ~ U(0, 1)`` at the start.

    Args:
        num_gates: 1 for one gate shared by all branches (the released code), K for one per branch (the paper).
    """

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.rand(num_gates))

    def forward(self, branches: Tensor, merge: Merge) -> Tensor:
        return soft_connect(branches, self.theta, merge)

    def gate_and_scales(self, branches: Tensor, merge: Merge) -> tuple[Tensor, Tensor]:
        """The gates of all branches and the scales of the merge, ``(K,)`` both, see :func:`run_chain`; in the dtype of
        the gate, so that half precision does not overflow in their gradients."""
        gate = self.theta.sigmoid()
        return gate.expand(merge.num_bases), merge.weights(gate)


class RealValuedSkip(nn.Module):
    """A module plus its input, ``(N, C, H, W)`` to the same.

    Public attributes of the module are those of the skip, too: mmdet and mmseg read ``fpn_convs[i].conv`` and the like.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Copies, pickles and tracers ask for private names, and mean the skip itself.
            if name.startswith('_') or name == 'module':
                raise
            return getattr(self.module, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + x
