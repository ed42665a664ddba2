"""Trained models as .onnx files; docs/onnx_file.md describes them."""

from mmgroupnet.deploy.onnx.errors import NotExportable
from mmgroupnet.deploy.onnx.export import Exported, export
from mmgroupnet.deploy.onnx.resize import UnknownResize, read_resize

__all__ = ['Exported', 'NotExportable', 'UnknownResize', 'export', 'read_resize']
