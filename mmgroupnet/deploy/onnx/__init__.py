"""Exports trained models as .onnx files; docs/onnx_file.md describes them."""

from mmgroupnet.deploy.onnx.export import Exported, export
from mmgroupnet.deploy.onnx.resize import UnknownResize, read_resize

__all__ = ['Exported', 'UnknownResize', 'export', 'read_resize']
