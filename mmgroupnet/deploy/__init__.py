"""Packing of trained models."""

from mmgroupnet.deploy.packed_model import PACKED_TYPE, build_packed, with_data_preprocessor
from mmgroupnet.deploy.packing import PackedLayer, pack, pack_and_report

__all__ = ['PACKED_TYPE', 'PackedLayer', 'build_packed', 'pack', 'pack_and_report', 'with_data_preprocessor']
