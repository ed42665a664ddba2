"""Lean training: binary convolutions and chains of them with the gradients of plain autograd, in a fraction of its
memory.

The forward pass decides once how a layer runs, using only facts that are equal in all processes; the backward pass
reads no module.
"""

from mmgroupnet.layers.lean.chain import Chain, can_run_chain, run_chain
from mmgroupnet.layers.lean.conv import can_run_conv, run_conv
from mmgroupnet.layers.lean.interface import BinaryConv, ConvOperands
from mmgroupnet.layers.lean.unit import ChainUnit

__all__ = [
    'BinaryConv',
    'Chain',
    'ChainUnit',
    'ConvOperands',
    'can_run_chain',
    'can_run_conv',
    'run_chain',
    'run_conv',
]
