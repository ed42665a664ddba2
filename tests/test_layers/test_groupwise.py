import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmgroupnet.layers import GroupwiseChain


class Block(nn.Module):
    """A block of another library."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.conv(x))


def chain(num_bases: int, gates: bool) -> GroupwiseChain:
    """A chain of two blocks whose branches have different weights."""
    torch.manual_seed(0)
    built = GroupwiseChain([Block(3, 4), Block(4, 4)], num_bases, gates)
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built


def test_soft_gates_between_merged_and_separate_branches():
    """The outputs follow Group-Net's equations, written here branch by branch."""
    built, x = chain(3, gates=True), torch.randn(2, 3, 5, 6)
    first, second = built.blocks
    outs = [branch(x) for branch in first.branches]
    merged = sum(outs) / 3
    c = second.gate.theta.sigmoid()
    expected = sum(branch(c * out + (1 - c) * merged) for branch, out in zip(second.branches, outs, strict=True)) / 3
    assert_close(built(x), expected)


def test_without_gates_every_block_is_merged():
    built, x = chain(3, gates=False), torch.randn(2, 3, 5, 6)
    expected = x
    for block in built.blocks:
        assert block.gate is None
        expected = sum(branch(expected) for branch in block.branches) / 3
    assert_close(built(x), expected)


def test_one_branch_is_the_chain_itself():
    blocks, x = [Block(3, 4), Block(4, 4)], torch.randn(2, 3, 5, 6)
    expected = nn.Sequential(*blocks)(x)
    for gates in (False, True):
        assert_close(GroupwiseChain(blocks, 1, gates)(x), expected, rtol=0, atol=0 if not gates else 1e-6)


def test_the_first_branch_is_the_block():
    blocks = [Block(3, 4)]
    built = GroupwiseChain(blocks, 2, gates=True)
    assert built.blocks[0].branches[0] is blocks[0]
    assert built.blocks[0].branches[1].conv.weight is not blocks[0].conv.weight
    assert built.blocks[0].gate is None


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_blocks_of_several_maps_are_refused():
    chain = GroupwiseChain([Pair(), Pair()], num_bases=2, gates=True)
    x = torch.ones(1, 4, 2, 2)
    with pytest.raises(
        ValueError, match='^a block of class Pair returns a tuple: the blocks of a groupwise rule map one'
    ):
        chain(x)
    with pytest.raises(ValueError, match='^a block of class Pair gets a list: '):
        chain([x, x])
