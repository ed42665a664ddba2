"""Groups of K branches whose blocks are of a foreign class.

Such blocks cannot be folded: they run as K copies. Their outputs are folded as usual, and merged and gated by the same
functions.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.layers.branches import split
from mmgroupnet.layers.merges import Merge, SoftGate, build_merge


class GroupwiseBlock(nn.Module):
    """K copies of a block, the branches of a group.

    Args:
        branches: The K copies; each maps ``(N, C, H, W)`` to ``(N, C', H', W')``.
        gate: Gate of the connection to the block in front; None if each branch reads the merged map.
    """

    def __init__(self, branches: Sequence[nn.Module], gate: SoftGate | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.gate = gate
        self.merge = build_merge(len(self.branches), learned_scales=False)

    def forward(self, x: Tensor, last_merge: Merge | None) -> Tensor:
        """Connects and runs the branches.

        Args:
            x: Outputs of the last block's branches, ``(N, K*C, H, W)``; for the first block one map.
            last_merge: Merges them; None if ``x`` is one map, which all branches read.

        Returns: Outputs of the branches, ``(N, K*C', H', W')``, unmerged.

        Raises:
            UserError: If a block takes or returns several maps.
        """
        num_bases = len(self.branches)
        self._require_map(x, 'gets')
        if last_merge is not None and self.gate is not None:
            inputs: Sequence[Tensor] = split(self.gate(x, last_merge), num_bases)
        else:
            inputs = [x if last_merge is None else last_merge(x)] * num_bases
        # By index: torch.fx cannot iterate over what it traces.
        outs = [branch(inputs[index]) for index, branch in enumerate(self.branches)]
        self._require_map(outs[0], 'returns')
        return outs[0] if num_bases == 1 else torch.cat(outs, dim=1)

    def _require_map(self, x: object, verb: str) -> None:
        if isinstance(x, list | tuple | dict):  # Tracers of torch call it with objects that are no Tensors, either.
            raise UserError(
                f'a block of class {type(self.branches[0]).__name__} {verb} a {type(x).__name__}: the blocks of a '
                'groupwise rule map one tensor to one tensor; give it another rule, above that one'
            )


class GroupwiseChain(nn.Module):
    """Chain of blocks as groups of K branches. All branches of the first block read one map, those of the others are
    connected to the block in front, and the output of the last block is merged.

    Args:
        blocks: Consecutive blocks of any class that maps ``(N, C, H, W)`` to ``(N, C', H', W')``. The chain uses them
            as the first of the K branches, and copies of them as the others.
        num_bases: Number K of branches.
        gates: True for soft gates between the blocks (Group-Net), False if each branch reads the merged map (GBD v1).

    Shape: As the blocks.

    Source: Group-Net, section 3.3 (group-wise binary decomposition) and 3.4 (soft connections).
    """

    def __init__(self, blocks: Sequence[nn.Module], num_bases: int, gates: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            GroupwiseBlock(
                [block, *(copy.deepcopy(block) for _ in range(num_bases - 1))],
                SoftGate(1) if gates and index > 0 else None,  # the first block has nothing to gate
            )
            for index, block in enumerate(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        merge: Any = None  # the first block has nothing to merge
        for block in self.blocks:
            x = block(x, merge)
            merge = block.merge
        return merge(x)
