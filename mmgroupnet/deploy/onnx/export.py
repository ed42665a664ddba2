"""Writing a model as one .onnx file."""

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from onnxscript import ir
from torch import nn

from mmgroupnet.deploy.onnx.maps import Maps
from mmgroupnet.deploy.onnx.metadata import write_metadata
from mmgroupnet.deploy.onnx.norms import rewrite_norms
from mmgroupnet.deploy.onnx.operators import OPSET, packed_translations
from mmgroupnet.deploy.onnx.preprocessing import read_preprocessor
from mmgroupnet.deploy.onnx.steps import step_translations

# Of the pictures with which the graph is traced: its sizes are no multiples of a stride, so that nothing that holds for
# such alone gets into it.
_TRACED = (2, 131, 163, 3)
# The module of each task and its class.
_TASKS = dict(
    detection=('mmgroupnet.deploy.onnx.detection', 'Detector'),
    segmentation=('mmgroupnet.deploy.onnx.segmentation', 'Segmentor'),
    classification=('mmgroupnet.deploy.onnx.classification', 'Classifier'),
)


def build_graph(model: nn.Module, raw: bool = False, scores: bool = False) -> tuple[str, nn.Module]:
    """Puts a model between its preprocessing and what makes its answer.

    Args:
        model: A model of mmdet, mmseg or mmpretrain, packed or without binary layers. It is left as it is.
        raw: The maps in place of the answer. Default: False.
        scores: A segmentor gives its scores, too. Default: False.

    Returns:
        The task, and the module that is traced.

    Raises:
        NotExportable: If the graph has no counterpart for a part of the model.
    """
    task, preprocessing = read_preprocessor(model.data_preprocessor)
    if scores and (raw or task != 'segmentation'):
        raise NotExportable(f'scores=True (--scores) is for class maps, not for {"maps" if raw else task}')
    model = copy.deepcopy(model).eval()
    rewrite_norms(model)
    module = import_module(_TASKS[task][0])
    if raw:
        return 'maps', Maps(model, preprocessing, module.head_of(model)).eval()
    options = dict(with_scores=scores) if task == 'segmentation' else {}
    return task, getattr(module, _TASKS[task][1])(model, preprocessing, **options).eval()
