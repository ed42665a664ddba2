"""Writing a model as one .onnx file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir
from torch import nn

from mmgroupnet.checkpoints.write import replacing
from mmgroupnet.deploy.onnx.check import Comparison, check
from mmgroupnet.deploy.onnx.graph import TRACED_SIZE, Graph, trace
from mmgroupnet.deploy.onnx.metadata import write_metadata
from mmgroupnet.layers.packed import PackedUnit

# Longest side of the picture for the comparison of a file with its model, unless the resize rule crops to a size.
_LONGEST_SIDE = 320


@dataclass(frozen=True)
class Exported:
    """Information on the written file.

    Args:
        metadata: The metadata of the file.
        num_packed: Number of binary layers whose weights are bits.
        comparison: The comparison of the file with the model.
    """

    metadata: dict
    num_packed: int
    comparison: Comparison


def _picture_size(resize: Sequence[dict] | None) -> tuple[int, int]:
    """Height and width of a plausible picture for the network."""
    for step in reversed(resize or ()):
        if step['type'] == 'center_crop' or (step['type'] == 'resize' and not step['keep_ratio']):
            return step['height'], step['width']
        if step['type'] == 'resize':
            shrink = min(1, _LONGEST_SIDE / max(step['height'], step['width']))
            return round(shrink * step['height']), round(shrink * step['width'])
    return TRACED_SIZE


def export(
    model: nn.Module,
    path: str | Path,
    raw: bool = False,
    scores: bool = False,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    resize: Sequence[dict] | None = None,
) -> Exported:
    """Writes a model of mmdet, mmseg or mmpretrain as one .onnx file, docs/onnx_file.md, and checks it.

    Args:
        model: A packed model (:func:`mmgroupnet.deploy.pack`), or one without binary layers. It is not changed.
            Binary layers that are not packed are written as the float32 computation that simulates them.
        path: The file. It is written atomically.
        raw: Writes the maps of the head (if it is not supported, the maps in front of it) instead of predictions.
            Default: False.
        scores: A segmentor returns its scores beside the class map. Default: False.
        classes: Names of the classes. Default: None, no names in the file.
        palette: A colour for each class, (r, g, b). Default: None.
        resize: Steps of the resize rule, see :func:`mmgroupnet.deploy.onnx.read_resize`. Default: None, no rule in the
            file.

    Returns:
        Information on the written file.

    Raises:
        UserError: If the graph does not support a part of the model, or torch cannot trace it.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    graph = Graph(model, raw, scores)
    traced = trace(graph)
    metadata = write_metadata(traced, graph.task, classes, palette, resize)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        ir.save(traced, partial)
        comparison = check(partial, graph, _picture_size(resize))
    units = [module for module in model.modules() if isinstance(module, PackedUnit)]
    return Exported(metadata, len({unit.bits.data_ptr() for unit in units}), comparison)
