"""The packed kernels as torch ops, see :mod:`mmgroupnet.ops.library`, and how weights and shapes are passed to them."""

from mmgroupnet.ops import kernels, simulation
from mmgroupnet.ops.geometry import Connection, Residual, UnitGeometry
from mmgroupnet.ops.kernels import available_kernels, select_kernels, selected_kernels
from mmgroupnet.ops.library import connect, convolve, max_pool, run_block, sign_pack
from mmgroupnet.ops.packing import pack_bits, pack_weight, unpack_bits, unpack_weight

__all__ = [
    'Connection',
    'Residual',
    'UnitGeometry',
    'available_kernels',
    'connect',
    'convolve',
    'kernels',
    'max_pool',
    'pack_bits',
    'pack_weight',
    'run_block',
    'select_kernels',
    'selected_kernels',
    'sign_pack',
    'simulation',
    'unpack_bits',
    'unpack_weight',
]
