"""Passes of lean training over the integers of binary convolutions, behind one protocol.

A backend is chosen once per chain, by facts that are equal in all processes: the device and the dtypes.
``KernelPasses`` are compiled kernels for the CPU, ``TorchPasses`` run on any device in any floating dtype, and
``TritonPasses`` are kernels for GPUs, selected by :data:`mmgroupnet.ops.passes.choice.ENVIRONMENT_VARIABLE`.

Integers ``y`` are ``(N, K*C, H, W)``. With ``relu``, r = max(y, 0), else r = y; scales and shifts are per folded
channel. Autograd does not record the passes.
"""

from mmgroupnet.ops.passes.choice import choose_passes
from mmgroupnet.ops.passes.kernel_passes import KernelPasses
from mmgroupnet.ops.passes.protocol import (
    BranchGradient,
    Formula,
    KnownSurrogate,
    NormPasses,
    Passes,
    Running,
    Surrogate,
    UnitGradients,
)
from mmgroupnet.ops.passes.torch_passes import TorchPasses

__all__ = [
    'BranchGradient',
    'Formula',
    'KernelPasses',
    'KnownSurrogate',
    'NormPasses',
    'Passes',
    'Running',
    'Surrogate',
    'TorchPasses',
    'UnitGradients',
    'choose_passes',
]
