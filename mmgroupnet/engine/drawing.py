"""Draws predictions on pictures, by the visualizers of the libraries."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from mmgroupnet.checkpoints.write import as_plain
from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.errors import UserError

_VISUALIZERS = dict(
    mmdet='mmdet.DetLocalVisualizer', mmseg='mmseg.SegLocalVisualizer', mmpretrain='mmpretrain.UniversalVisualizer'
)


def names_and_colours(library: str, scope: str | None, dataset: Mapping, stored: Mapping) -> dict:
    """Classes and palette of a model: those stored with it, completed from a config's data set.

    Args:
        library: The library of the config.
        scope: Its ``default_scope``.
        dataset: The config of its data set.
        stored: ``classes`` and ``palette`` of a checkpoint or an .onnx file, if it has them.
    """
    stored = {key.lower(): value for key, value in stored.items()}
    of_kind = getattr(resolve_type(dataset['type'], scope), 'METAINFO', {})
    sources: list[Any] = [as_plain(source) for source in (stored, dataset.get('metainfo') or {}, of_kind)]
    classes, palette = (
        next((source[key] for source in sources if source.get(key)), None) for key in ('classes', 'palette')
    )
    if isinstance(classes, str):  # A file with one name per line, as data sets take it.
        classes = list_from_file(classes)
    if palette and classes and len(palette) < len(classes):
        palette = None  # It belongs to another data set.
    if library == 'mmseg':  # Its visualizer needs both; a mask has up to 256 ids.
        classes = classes or [str(index) for index in range(256)]
        palette = palette or np.random.default_rng(0).integers(0, 256, (256, 3)).tolist()
    return dict(classes=classes, palette=palette)


def build_visualizer(cfg: Config, library: str, dataset_meta: Mapping) -> Visualizer:
    """A visualizer that draws only into files and windows.

    It is the config's visualizer, or its library's if the config has none that draws predictions.

    Args:
        cfg: The config.
        library: Its library.
        dataset_meta: Classes and palette.
    """
    visualizer = dict(cfg.get('visualizer') or {})
    kind = resolve_type(visualizer.get('type', Visualizer), cfg.get('default_scope'))
    if kind is Visualizer or kind is None:
        visualizer['type'] = _VISUALIZERS[library]
    # mmengine caches visualizers by name and would return the same one again.
    built = VISUALIZERS.build(dict(visualizer, vis_backends=None, name=f'predictions_{time.time_ns()}'))
    palette = as_plain(dataset_meta.get('palette'))
    if isinstance(palette, list | tuple):  # mmdet treats a colour that is a list as several colours.
        palette = [tuple(colour) for colour in palette]
    built.dataset_meta = dict(dataset_meta, palette=palette)
    return built


def draw(
    visualizer: Visualizer,
    library: str,
    pixels: np.ndarray,
    sample: BaseDataElement,
    out_file: Path | None,
    score_thr: float = 0.3,
    draw_gt: bool = True,
    show: bool = False,
    wait_time: float = 0,
) -> None:
    """Draws the predictions for a picture.

    Args:
        visualizer: A visualizer of the library.
        library: The library of the sample.
        pixels: The picture, RGB, ``(H, W, 3)``.
        sample: Its predictions.
        out_file: The file; None to write none.
        score_thr: Detections below this score are not drawn. Default: 0.3.
        draw_gt: Draw the ground truth as well, if the sample has it. Default: True.
        show: Open a window. Default: False.
        wait_time: Seconds that the window stays. Default: 0, which means until it is closed.
    """
    name, out = ('', None) if out_file is None else (out_file.name, str(out_file))
    options = dict(draw_gt=draw_gt, show=show, wait_time=wait_time, out_file=out)
    pixels = np.ascontiguousarray(pixels)
    if library == 'mmpretrain':
        if 'pred_score' not in sample:
            predicted = ', '.join(sample.keys())
            raise UserError(f'the model predicts {predicted}: of mmpretrain only classifiers (pred_score) can be drawn')
        visualizer.visualize_cls(pixels, sample, name=name, **options)
    elif library == 'mmdet':
        visualizer.add_datasample(name, pixels, sample, pred_score_thr=score_thr, **options)
    else:
        visualizer.add_datasample(name, pixels, sample, **options)
