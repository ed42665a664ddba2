"""Draws predictions on pictures.

It uses the config's own pipeline, its model and its library's visualizer. The libraries' inferencers do the same, but
they write pictures of the same name into one file, stop at the first unreadable picture, need a checkpoint even for an
.onnx file, and name their options differently.
"""

import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmgroupnet.checkpoints.packed import adopt_packed, check_device
from mmgroupnet.checkpoints.read import first_meta
from mmgroupnet.engine.data import few_names, innermost_datasets
from mmgroupnet.engine.drawing import build_visualizer, draw, names_and_colours
from mmgroupnet.engine.exported_model import adopt_exported, is_exported
from mmgroupnet.engine.libraries import required_library
from mmgroupnet.engine.models import load_model
from mmgroupnet.engine.pictures import OutputFiles, common_folder, decode, make_folder
from mmgroupnet.errors import UserError, summary
from mmgroupnet.model_configs import data_preprocessor_of, type_name


def _test_dataset(cfg: Config) -> Mapping:
    """The innermost data set of a config's test data or, without test data, of its validation data; it has the
    pipeline."""
    for loader in ('test_dataloader', 'val_dataloader'):
        if cfg.get(loader):
            dataset = next(innermost_datasets(cfg[loader]['dataset']))
            if dataset.get('pipeline'):
                return dataset
    raise UserError(
        'the config has no test_dataloader or val_dataloader whose data set has a pipeline, which says how pictures '
        'are prepared'
    )


def _split(pipeline: Sequence[Mapping]) -> tuple[Compose, Compose]:
    """The steps of a pipeline up to the one that reads the picture, and the steps after it, without annotations."""
    steps = [step for step in pipeline if not ('Load' in type_name(step) and 'Annotation' in type_name(step))]
    reader = next((index for index, step in enumerate(steps) if type_name(step).startswith('Load')), -1)
    return Compose(steps[: reader + 1]), Compose(steps[reader + 1 :])


def _read(path: str, reading: Compose, is_rgb: bool) -> tuple[np.ndarray | None, dict | None]:
    """A picture to draw on, and the output of the config's pipeline for it; None for both if it cannot be read."""
    try:
        pixels = decode(Path(path).read_bytes())
    except OSError:
        return None, None
    if pixels is None:
        return None, None
    results = dict(img_path=path, img_id=0, sample_idx=0, seg_fields=[])
    if not reading.transforms:  # Data sets of arrays have no step that reads.
        array = np.ascontiguousarray(pixels if is_rgb else pixels[..., ::-1])
        return pixels, dict(results, img=array, img_shape=array.shape[:2], ori_shape=array.shape[:2])
    try:
        return pixels, reading(results)
    except Exception:  # The config may use any reader, which raises its own errors for a damaged file.
        print_log(f'{path}: the test pipeline does not read it\n{traceback.format_exc()}', 'current', logging.WARNING)
        return None, None


def _build(cfg: Config, checkpoint: str | Path, device: str | None) -> tuple[nn.Module, Mapping]:
    """The model with its weights, or the model of an .onnx file, and the file's information on classes."""
    if is_exported(checkpoint):
        if Path(checkpoint).suffix != '.onnx':
            raise UserError(f'{checkpoint} holds predictions, not a model: mmgroupnet test --show-dir DIR draws them')
        if device not in (None, 'cpu'):
            raise UserError(f'--device {device}: {checkpoint} runs only on the CPU, give --device cpu')
        adopt_exported(cfg, checkpoint)
        model = MODELS.build(cfg.model)
        model.check_task(cfg.default_scope)
        model.eval()
        return model, model.dataset_metainfo
    if adopt_packed(cfg, checkpoint):
        device = device or 'cpu'
        check_device(checkpoint, device)
    device = device or get_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device} cannot be used: {summary(error)}') from error
    model, content = load_model(cfg, checkpoint)
    meta = content.get('meta') or {}
    # Files from before mmengine have CLASSES and PALETTE beside the weights.
    model = revert_sync_batchnorm(model).to(device)
    model.eval()  # Not every model returns itself here.
    return model, first_meta(meta.get('dataset_meta')) or meta


def draw_on_pictures(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str],
    out_dir: str | Path,
    score_thr: float = 0.3,
    device: str | None = None,
    root: str | Path | None = None,
) -> Path:
    """Predicts on pictures and draws the result.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        checkpoint: A local file with the weights of a trained or packed model, or an .onnx file that was exported from
            them.
        images: The pictures.
        out_dir: Folder for the drawn pictures; it is created.
        score_thr: Detections below this score are not drawn. Default: 0.3.
        device: The device, such as 'cpu' or 'cuda:0'. Default: a GPU if there is one and the weights are neither packed
            nor exported.
        root: The drawn pictures keep the folders of the pictures below this folder. Default: the deepest folder that
            contains all of them.

    Returns:
        The folder inside ``out_dir`` that holds the drawn pictures, each with the name of its picture.

    Raises:
        UserError: If the checkpoint does not fit the config, the config is of another library, the folder cannot be
            created, the device is not available, or some pictures cannot be read (after the others are drawn).
    """
    cfg, library = cfg.copy(), required_library(cfg, 'drawing')
    cfg.default_scope = cfg.get('default_scope') or library
    drawn = Path(out_dir) / 'vis'
    files = OutputFiles(drawn, common_folder(Path(image).parent for image in images) if root is None else root)
    for image in images:
        if files.path_of(image).resolve() == Path(image).resolve():
            raise UserError(f'--out {out_dir}: the drawn picture would replace {image}, give another folder')
    make_folder(drawn)
    unreadable = []
    is_rgb = not data_preprocessor_of(cfg, 'to_rgb').get('to_rgb')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        dataset = _test_dataset(cfg)
        reading, preparing = _split(dataset['pipeline'])
        model, meta = _build(cfg, checkpoint, device)
        meta = names_and_colours(library, cfg.default_scope, dataset, meta)
        visualizer = build_visualizer(cfg, library, meta)
        collate = default_collate if library == 'mmpretrain' else pseudo_collate
        for image in images:
            pixels, results = _read(image, reading, is_rgb)
            if pixels is None:
                print_log(f'{image} cannot be read and is left out', 'current', logging.WARNING)
                unreadable.append(image)
                continue
            (sample,) = model.test_step(collate([preparing(results)]))
            draw(visualizer, library, pixels, sample, files.path_of(image), score_thr, draw_gt=False)
    if unreadable:
        others = f'; the others are in {drawn}' if len(unreadable) < len(images) else ''
        raise UserError(f'{len(unreadable)} of {len(images)} pictures cannot be read: {few_names(unreadable)}{others}')
    return drawn
