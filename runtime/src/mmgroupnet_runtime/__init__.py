"""Runs binary networks of mmgroupnet on a device, with only numpy and ONNX Runtime."""

from mmgroupnet_runtime.answers import Classification, Detections, Segmentation
from mmgroupnet_runtime.errors import UserError
from mmgroupnet_runtime.machine import library_path
from mmgroupnet_runtime.model import Model, load
from mmgroupnet_runtime.version import __version__

__all__ = [
    'Classification',
    'Detections',
    'Model',
    'Segmentation',
    'UserError',
    '__version__',
    'library_path',
    'load',
]
