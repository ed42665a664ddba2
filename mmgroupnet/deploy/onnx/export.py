"""Writing a model as one .onnx file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onnxscript import ir
from torch import nn

from mmgroupnet.deploy.onnx.graph import Graph, trace
from mmgroupnet.deploy.onnx.metadata import write_metadata


def export(
    model: nn.Module,
    path: str | Path,
    raw: bool = False,
    scores: bool = False,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    resize: Sequence[dict] | None = None,
) -> dict:
    """x"""
    graph = Graph(model, raw, scores)
    traced = trace(graph)
    metadata = write_metadata(traced, graph.task, classes, palette, resize)
    ir.save(traced, path)
    return metadata
