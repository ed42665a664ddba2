"""Packing of trained models, and the files that hold packed ones."""

from mmgroupnet.deploy.packed_checkpoint import build_packed, pack_checkpoint, read_packed, save_packed
from mmgroupnet.deploy.packing import PackedLayer, pack

__all__ = ['PackedLayer', 'build_packed', 'pack', 'pack_checkpoint', 'read_packed', 'save_packed']
