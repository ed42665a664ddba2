"""Merges of K folded branches into one map, and soft connections between blocks."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mmgroupnet.layers.branches import add_up, split
from mmgroupnet.layers.fx import trace_as_leaf
from mmgroupnet.layers.lean.path import is_as_written
from mmgroupnet.layers.packed import NotPackable, Packable, PackedMerge, Packing, find_twin


class Merge(Packable):
    """Merges branches into one map, ``(N, K*C, ...)`` to ``(N, C, ...)``; with K = 1 and without learned scales it is
    the identity. A subclass defines :meth:`merged` and :meth:`weights`.

    Args:
        num_bases: Number K of branches.
    """

    def __init__(self, num_bases: int) -> None:
        super().__init__()
        self.num_bases = num_bases

    @trace_as_leaf
    def forward(self, branches: Tensor) -> Tensor:
        twin = find_twin(self, branches)
        if twin is not None and branches.dim() == 4:  # weights are merged, too
            return twin(branches)
        return self.merged(branches)

    @abstractmethod
    def merged(self, branches: Tensor) -> Tensor:
        """The merged map."""

    @abstractmethod
    def weights(self, like: Tensor) -> Tensor:
        """The factor of each branch, ``(K,)``, with dtype and device of ``like``."""

    def packed_twin(self, packing: Packing) -> PackedMerge:
        kind = next((kind for kind in (MeanMerge, InPlaceMerge, ScaledMerge) if isinstance(self, kind)), Merge)
        if not is_as_written(self, Merge) or type(self).merged is not kind.merged:
            raise NotPackable(f'{type(self).__name__} has a forward of its own')
        scales = None if kind is MeanMerge else self.weights(torch.empty(0))
        return PackedMerge(self.num_bases, scales, kind is InPlaceMerge)

    def outputs_for_next(self, branches: Tensor) -> Tensor:
        """The tensor passed on to the next block and to :meth:`forward`, ``(N, K*C, H, W)``; by default unchanged."""
        return branches


class MeanMerge(Merge):
    """Plain average of the branches (journal version of Group-Net), see :class:`Merge`."""

    def merged(self, branches: Tensor) -> Tensor:
        if self.num_bases == 1:
            return branches
        return add_up(branches, self.num_bases, mean=True)

    def weights(self, like: Tensor) -> Tensor:
        return like.new_full((self.num_bases,), 1 / self.num_bases)


class InPlaceMerge(Merge):
    """Plain average of the branches; their sum replaces the output of branch 0, see :class:`Merge`.

    If it merges without learned scales, Group-Net's released code adds the branches up in place. The merged map is the
    mean, but branch 0 passes the sum of all K outputs to the next block. Weights that were trained this way need it.

    Shape: :meth:`outputs_for_next` puts the sum in place; the other methods take its result.
    """

    def __init__(self, num_bases: int) -> None:
        super().__init__(num_bases)
        # Records this wiring in checkpoints: no other merge loads them, and this one loads no others. half() and
        # double() do not convert an integer, such as a norm's counter of batches.
        self.register_buffer('sums_in_place', torch.tensor(1))

    def outputs_for_next(self, branches: Tensor) -> Tensor:
        """``(G_0, G_1, ..., G_{K-1})`` to ``(sum_j G_j, G_1, ..., G_{K-1})``."""
        if self.num_bases == 1:
            return branches
        parts = split(branches, self.num_bases)
        return torch.cat([sum(parts[1:], parts[0]), *parts[1:]], dim=1)

    def merged(self, branches: Tensor) -> Tensor:
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

    def merged(self, branches: Tensor) -> Tensor:
        scales = self.scales.view(-1, *[1] * (branches.dim() - 1))
        return add_up((branches.unflatten(1, (self.num_bases, -1)) * scales).flatten(1, 2), self.num_bases)

    def weights(self, like: Tensor) -> Tensor:
        return self.scales.to(like)


def build_merge(num_bases: int, learned_scales: bool) -> Merge:
    """The mean, or a sum with learned scales, of ``num_bases`` branches."""
    return ScaledMerge(num_bases) if learned_scales else MeanMerge(num_bases)


def soft_connect(branches: Tensor, gate: Tensor, merge: Merge) -> Tensor:
    """Input of the next block's branches, ``c * branch + (1 - c) * merged`` with ``c = sigmoid(gate)`` (Group-Net, soft
    connections).

    With ``c = 0`` every branch reads the merged map (GBD v1), with ``c = 1`` each branch reads its own (GBD v3).

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
        """The gates of all branches and the scales of the merge, both ``(K,)``, see :func:`run_chain`. They have the
        dtype of the gate, so that their gradients do not overflow in half precision."""
        gate = self.theta.sigmoid()
        return gate.expand(merge.num_bases), merge.weights(gate)
