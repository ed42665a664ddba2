"""The resize rule of a test pipeline."""

from collections.abc import Callable, Iterable, Mapping

from mmgroupnet.model_configs import type_name

# Transforms that do not change the pixels of a test picture.
_WITHOUT_EFFECT = (
    'InferencerLoader',
    'LoadAnnotations',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
    'PackDetInputs',
    'PackInputs',
    'PackSegInputs',
)
# A runtime has pictures of bytes, in colour. These are the defaults of the transforms that load them.
_LOADED = dict(color_type='color', to_float32=False)


class UnknownResize(ValueError):
    """No resize rule of an .onnx file can describe a test pipeline."""


def _sides(size: int | tuple[int, int]) -> dict:
    """The fields of a size that transforms take as (width, height) or as one number."""
    width, height = (size, size) if isinstance(size, int) else size
    return dict(width=int(width), height=int(height))


def _resize(scale: int | tuple[int, int], keep_ratio: bool = False, clip_object_border: bool = True) -> dict:
    return dict(type='resize', **_sides(scale), keep_ratio=bool(keep_ratio))


def _resize_edge(scale: int, edge: str = 'short') -> dict:
    return dict(type='resize_edge', edge=edge, length=int(scale))


def _center_crop(crop_size: int | tuple[int, int], clip_object_border: bool = True) -> dict:
    return dict(type='center_crop', **_sides(crop_size))


_STEPS: dict[str, Callable[..., dict]] = dict(Resize=_resize, ResizeEdge=_resize_edge, CenterCrop=_center_crop)
# The only values that a runtime supports, and the transforms' own defaults.
_BILINEAR = dict(backend='cv2', interpolation='bilinear')


def read_resize(pipeline: Iterable[Mapping], crops: bool) -> list[dict]:
    """Reads the steps of a test pipeline between the loaded picture and the network's input.

    Args:
        pipeline: Configs of its transforms.
        crops: Whether a crop is allowed; predictions in pixels could not be mapped back to the whole picture.

    Returns:
        The steps, as in docs/onnx_file.md.

    Raises:
        UnknownResize: If a transform changes pixels in a way that no step can describe. The message names it.
    """
    steps = []
    for transform in pipeline:
        kind = type_name(transform)
        options = {name: value for name, value in transform.items() if name != 'type'}
        if kind in _WITHOUT_EFFECT and all(options.get(name, value) == value for name, value in _LOADED.items()):
            continue
        if kind == 'RandomFlip' and options.get('prob') == 0:
            continue
        is_step = kind in _STEPS and (crops or kind != 'CenterCrop')
        if is_step and all(options.pop(name, value) == value for name, value in _BILINEAR.items()):
            try:
                steps.append(_STEPS[kind](**options))
                continue
            except TypeError:  # It has or lacks an option, unlike the step.
                pass
        raise UnknownResize(
            f'the test pipeline has {dict(transform)}: the file can hold Resize(scale, keep_ratio), ResizeEdge and, '
            'only for classifiers and maps, CenterCrop, bilinear by cv2, of pictures loaded in colour as uint8'
        )
    return steps
