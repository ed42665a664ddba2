"""Reports the complexity of a config's model at the size of its test images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmgroupnet.analysis.complexity import Complexity, analyze, by_part, table, total
from mmgroupnet.converters import binarization_of
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.data import innermost_datasets
from mmgroupnet.engine.models import build_model
from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import data_preprocessor_of, is_packed_config, type_name

# Transforms of the three libraries that set the size of an image, and the names of their size options.
_SIZES = dict(
    Resize='scale', FixShapeResize=('width', 'height'), RandomResizedCrop='scale', CenterCrop='crop_size', Pad='size'
)


def count_parameters(config: str) -> tuple[int, int]:
    """Counts the parameters of a config's model.

    Args:
        config: A config file.

    Returns:
        Their number, and how many of them are weights of binary layers, which are stored as one bit.
    """
    whole = measure_complexity(config)
    return whole.parameters, whole.binary_parameters


def measure_complexity(config: str) -> Complexity:
    """Counts parameters and operations of a config's model.

    Args:
        config: A config file.

    Returns:
        The sum over the model, with operations at the size of :func:`input_size`, or none if that is not known.
    """
    cfg = load_config(config)
    model = build_model(cfg)
    size = input_size(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        call = forward_call(model, torch.zeros(1, input_channels(cfg, model), *size)) if size else None
        return total(analyze(model, call))


def input_size(cfg: Config) -> tuple[int, int] | None:
    """Height and width of the test images of a config's model, padded as by its data preprocessor, or None if the
    pipeline does not say."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not loader:
        return None
    size = None
    for transform in next(innermost_datasets(loader['dataset'])).get('pipeline') or []:
        keys = _SIZES.get(type_name(transform))
        if keys is None:
            continue
        keys = (keys,) if isinstance(keys, str) else keys
        values = [transform[key] for key in keys if transform.get(key) is not None]
        values = values[0] if len(values) == 1 else values
        if not values:
            continue
        if isinstance(values, int):
            size = (values, values)
        elif all(isinstance(value, int) for value in values):
            width, height = values  # All libraries write (width, height).
            size = (height, width)
        if transform.get('keep_ratio') and size is not None:
            size = (min(size), max(size))  # The limits of both sides, for a picture that is wider than high.
    if size is None:
        return None
    divisor = data_preprocessor_of(cfg, 'pad_size_divisor').get('pad_size_divisor') or 1
    height, width = (math.ceil(side / divisor) * divisor for side in size)
    return height, width


def input_channels(cfg: Config, model: nn.Module) -> int:
    """Number of channels of the images that a config's model takes.

    It is the backbone's ``in_channels``, or else the number of means of the data preprocessor. A single mean may apply
    to all channels; then the first convolution decides. Default: 3.

    Args:
        cfg: The config.
        model: Its model.
    """
    part = cfg.model
    while isinstance(part, Mapping):
        backbone = part.get('backbone')
        if isinstance(backbone, Mapping) and isinstance(backbone.get('in_channels'), int):
            return backbone['in_channels']
        part = part.get('model')
    means = data_preprocessor_of(cfg, 'mean').get('mean')
    if not isinstance(means, Sequence):
        return 3
    if len(means) > 1:
        return len(means)
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)


def forward_call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A function that calls a model up to its raw predictions.

    A detector with proposals gets the number that its ``test_cfg`` allows or that it has learned, with growing sizes,
    since the number for a real picture is not a property of the model.

    Args:
        model: A model of mmdet, mmseg or mmpretrain.
        images: ``(N, C, H, W)``.
    """
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    library = type(model).__module__.split('.')[0]
    if library == 'mmseg':  # Its mode='tensor' does not support cascades of heads.
        return lambda: model.encode_decode(images, [meta for _ in images])
    if library != 'mmdet':
        return lambda: model(images, mode='tensor')
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo=meta) for _ in images]
    rpn_head: Any = getattr(model, 'rpn_head', None)
    predict: Any = getattr(rpn_head, 'predict', None)
    learned: int | None = getattr(rpn_head, 'num_proposals', None)  # Sparse R-CNN has a box and a feature for each
    limit: Any = learned or getattr(getattr(rpn_head, 'test_cfg', None), 'max_per_img', None)
    if limit is not None:
        corners = torch.linspace(0, 1, limit + 1)[1:, None] * torch.tensor([float(size[1]), float(size[0])])
        boxes = torch.cat([torch.zeros(limit, 2), corners], dim=1).to(images)
    if learned is not None:
        # Its raw predictions pass through its assigner; QueryInst predicts masks for proposals that get an object.
        for sample in samples:
            sample.gt_instances = InstanceData(bboxes=boxes, labels=boxes.new_zeros(limit, dtype=torch.int64))

    def propose(features: Sequence[Tensor], *args: object, **kwargs: object) -> list[InstanceData]:
        if learned is None:
            if type(rpn_head).forward is nn.Module.forward:  # a cascade of RPNs
                predict(features, *args, **kwargs)
            else:
                rpn_head(features)
        proposals = [InstanceData() for _ in images] if learned is None else predict(features, *args, **kwargs)
        for proposal in proposals:
            proposal.bboxes = boxes
        return proposals

    def run() -> object:
        if limit is None:
            return model(images, samples, mode='tensor')
        rpn_head.predict = propose
        try:
            return model(images, samples, mode='tensor')
        finally:
            del rpn_head.predict

    return run


def describe_model(
    cfg: Config, model: nn.Module | None = None, size: tuple[int, int] | None = None, per_layer: bool = False
) -> str:
    """The complexity of a config's model as text.

    Args:
        cfg: The config.
        model: The model, if it is already built. Default: None, it is built.
        size: Height and width of the input. Default: the size of the config's test pipeline.
        per_layer: One row per layer instead of one per part. Default: False.

    Raises:
        UserError: If a part of the model refuses its arguments, or the model is packed.
    """
    if is_packed_config(cfg):
        raise UserError("model=dict(type='mmgroupnet.Packed', ...): give the model inside it")
    model = build_model(cfg) if model is None else model
    size = size or input_size(cfg)
    lines = []
    report = binarization_of(model)
    if report is not None:
        lines += [report.describe(), '']
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        if size is None:
            rows = analyze(model)
            lines.append('Operations are not counted: the test pipeline does not say the size of its images')
        else:
            channels = input_channels(cfg, model)
            image = torch.zeros(1, channels, *size, device=next(model.parameters()).device)
            try:
                rows = analyze(model, forward_call(model, image))
                lines.append(
                    f'Input {size[0]}x{size[1]} (height x width); operations are multiply-accumulates, OPs = FLOPs + '
                    'BOPs / 64'
                )
            except Exception as error:  # A foreign model may raise anything; it can still be trained.
                rows, size = analyze(model), None
                lines.append(f'Operations are not counted: {type(model).__name__} cannot be called so ({error})')
    lines.append(table(rows if per_layer else by_part(model, rows), has_operations=size is not None))
    return '\n'.join(lines)
