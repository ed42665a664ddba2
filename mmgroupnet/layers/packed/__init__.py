"""Packed twins of the binary layers, and how a layer runs on bits automatically when no gradient is needed."""

from mmgroupnet.layers.packed.fold import NotPackable, can_fold, fold_norm
from mmgroupnet.layers.packed.modules import (
    PackedBlock,
    PackedChain,
    PackedFloatShortcut,
    PackedLinear,
    PackedMerge,
    PackedModule,
    PackedStem,
    PackedTower,
    PackedUnit,
)
from mmgroupnet.layers.packed.path import Packable, Packing, find_twin, simulated
from mmgroupnet.layers.packed.twins import pack_apart, pack_shortcut, pack_unit

__all__ = [
    'NotPackable',
    'Packable',
    'PackedBlock',
    'PackedChain',
    'PackedFloatShortcut',
    'PackedLinear',
    'PackedMerge',
    'PackedModule',
    'PackedStem',
    'PackedTower',
    'PackedUnit',
    'Packing',
    'can_fold',
    'find_twin',
    'fold_norm',
    'pack_apart',
    'pack_shortcut',
    'pack_unit',
    'simulated',
]
