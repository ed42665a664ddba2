"""Writes checkpoints as .onnx files; docs/onnx_file.md describes the format."""

from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmgroupnet.checkpoints.packed import adopt_packed
from mmgroupnet.deploy.onnx import Exported, UnknownResize, export, read_resize
from mmgroupnet.engine.data import innermost_datasets
from mmgroupnet.engine.libraries import required_library
from mmgroupnet.engine.models import load_model
from mmgroupnet.engine.packing import load_float, pack_loaded
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d


def _load(cfg: Config, checkpoint: Path, strict: bool) -> tuple[nn.Module, dict | None, dict[str, str]]:
    """The model to export, the checkpoint's dataset_meta, and the binary layers that stay float, with the reason."""
    if not adopt_packed(cfg, checkpoint):
        model, dataset_meta = load_float(cfg, checkpoint)
        if not any(isinstance(module, BinaryConv2d) for module in model.modules()):
            return model, dataset_meta, {}
        model, layers = pack_loaded(model, strict)
        return model, dataset_meta, {layer.name: layer.problem for layer in layers if layer.problem is not None}
    model, content = load_model(cfg, checkpoint)
    floating = [name for name, module in model.named_modules() if isinstance(module, BinaryConv2d)]
    if strict and floating:
        raise UserError(f'--strict: {len(floating)} binary layers of {checkpoint} are not packed ({floating[0]}, ...)')
    return model, content['meta'].get('dataset_meta'), dict.fromkeys(floating, 'not packed in the checkpoint')


def _test_pipeline(cfg: Config) -> list | None:
    """The pipeline of the test pictures; None if the config has none."""
    loader = cfg.get('test_dataloader')
    if loader is None:
        return cfg.get('test_pipeline')
    return next(innermost_datasets(loader['dataset'])).get('pipeline')


def _names_and_colours(dataset_meta: Mapping | None) -> tuple[list | None, list | None]:
    """Classes and palette; None for a palette that lacks a colour for each class, such as 'random'."""
    meta = {key.lower(): value for key, value in (dataset_meta or {}).items()}
    classes, palette = meta.get('classes'), meta.get('palette')
    if classes is None or isinstance(palette, str) or palette is None or len(palette) != len(classes):
        palette = None
    return classes, palette


def export_checkpoint(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    raw: bool = False,
    scores: bool = False,
    strict: bool = False,
) -> str:
    """Writes the model of a checkpoint as an .onnx file.

    Args:
        cfg: A checked config of mmdet, mmseg or mmpretrain.
        checkpoint: A local file with the weights of a trained or packed model.
        out: The file to write, ``*.onnx``.
        raw: Writes the maps of the head instead of predictions. Default: False.
        scores: A segmentor returns its scores beside the class map. Default: False.
        strict: Raises if a binary layer cannot be packed, instead of leaving it float. Default: False.

    Returns:
        A summary of the file and of its comparison with the model.

    Raises:
        UserError: If the checkpoint does not fit the config, the model cannot be written as a graph, or the file cannot
            be written.
    """
    checkpoint, out = Path(checkpoint).expanduser(), Path(out).expanduser()
    if out.suffix != '.onnx':
        raise UserError(f'--out {out}: give a name that ends in .onnx, by which other tools know the file')
    cfg, library = cfg.copy(), required_library(cfg, 'the export to .onnx')
    cfg.default_scope = cfg.get('default_scope') or library
    notes = []
    try:
        pipeline = _test_pipeline(cfg)
        resize = None if pipeline is None else read_resize(pipeline, crops=raw or library == 'mmpretrain')
        if resize is None:
            notes.append('the file has no resize rule: the config has no test pipeline')
    except UnknownResize as error:
        resize = None
        notes.append(f'the file has no resize rule, its user has to prepare pictures: {error}')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model, dataset_meta, floating = _load(cfg, checkpoint, strict)
        classes, palette = _names_and_colours(dataset_meta)
        try:
            exported = export(model, out, raw, scores, classes, palette, resize)
        except OSError as error:
            raise UserError(f'{out} cannot be written: {error.strerror}') from error
    return '\n'.join([*_describe(out, exported, floating), *notes])


def _describe(out: Path, exported: Exported, floating: Mapping[str, str]) -> list[str]:
    """Lines of the summary."""
    lines = [
        f'{out}: {exported.metadata["task"]}, {out.stat().st_size:,} bytes, {exported.num_packed} binary layers on bits'
    ]
    lines += [f'stays float: {name} ({problem})' for name, problem in floating.items()]
    return [*lines, str(exported.comparison)]
