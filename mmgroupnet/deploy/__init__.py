"""Packing of trained models."""

from mmgroupnet.deploy.packed_model import build_packed
from mmgroupnet.deploy.packing import PackedLayer, pack, pack_and_report

__all__ = ['PackedLayer', 'build_packed', 'pack', 'pack_and_report']
