"""Packing of trained models, and the files that hold packed ones."""

from mmgroupnet.deploy.packing import PackedLayer, pack

__all__ = ['PackedLayer', 'pack']
