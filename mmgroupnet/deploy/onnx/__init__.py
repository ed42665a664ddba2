"""Exports trained models as .onnx files; docs/onnx_file.md describes them."""

from mmgroupnet.deploy.onnx.export import Exported, export
from mmgroupnet.deploy.onnx.resize import UnknownResize, read_resize
from mmgroupnet.errors import UserError

__all__ = ['Exported', 'UserError', 'UnknownResize', 'export', 'read_resize']
