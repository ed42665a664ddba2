"""Finds the heads of a built model that classify, and their numbers of classes."""

from collections.abc import Iterator
from typing import NamedTuple

from mmengine.model import is_model_wrapper
from torch import nn

# The attributes of heads in mmdet's detectors, mmseg's segmentors and mmpretrain's classifiers.
_PLACES = (
    'bbox_head', 'mask_head', 'panoptic_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'decode_head',
    'auxiliary_head', 'head', 'data_preprocessor',
)  # fmt: skip
# Attributes of wrapped models: test-time augmentation, semi-supervised training, tracking.
_OUTER = ('module', 'student', 'detector')
# Heads whose classes are not those of the data: object or not, edges, depths.
_OWN_CLASSES = ('RPN', 'STDCHead', 'DepthHead')


class ClassHead(NamedTuple):
    """A head and its classes.

    Args:
        name: Its place in the model, as in a config.
        num_classes: Its number of classes.
        only_things: Whether it is only for countable classes although the data has others as well.
    """

    name: str
    num_classes: int
    only_things: bool


def _find(model: nn.Module, place: str) -> nn.Module | None:
    part: nn.Module | None = model
    for name in place.split('.'):
        part = getattr(part, name, None)
    return part if isinstance(part, nn.Module) else None


def has_text_classes(model: nn.Module) -> bool:
    """Whether a model gets the classes as text, so that their number and order do not matter."""
    model = model.module if is_model_wrapper(model) else model
    return hasattr(model, 'language_model') or hasattr(model, 'text_encoder')


def ignored_ids(model: nn.Module) -> set[int]:
    """The mask ids that the heads of mmseg ignore, independently of the data set's ``ignore_index``."""
    heads = [module for module in model.modules() if hasattr(module, 'num_classes')]
    return {head.ignore_index for head in heads if isinstance(getattr(head, 'ignore_index', None), int)}


def class_heads(model: nn.Module) -> Iterator[ClassHead]:
    """Finds the heads of a model whose classes are those of its data.

    Models whose classes come as text and heads without ``num_classes`` are left out.

    Args:
        model: Any model; heads are found at the attributes of mmdet's, mmseg's and mmpretrain's models.
    """
    if is_model_wrapper(model):
        model = model.module
    for name in _OUTER:
        inner = _find(model, name)
        if inner is not None:
            yield from (head._replace(name=f'{name}.{head.name}') for head in class_heads(inner))
            return
    if has_text_classes(model):
        return
    for place in _PLACES:
        found = _find(model, place)
        if place == 'head' and found is not None and not hasattr(found, 'num_classes'):
            place, found = 'backbone', _find(model, 'backbone')  # VGG and LeNet return the scores themselves.
        several = isinstance(found, nn.ModuleList)
        for number, head in enumerate(found if isinstance(found, nn.ModuleList) else [found]):
            num_classes = getattr(head, 'num_classes', None)
            if not isinstance(num_classes, int) or num_classes < 1 or getattr(head, 'class_agnostic', False):
                continue
            if num_classes == getattr(head, 'out_channels', None) == 1:
                continue  # In mmseg, one channel separates two classes.
            if place == 'data_preprocessor' and not getattr(head, 'to_onehot', False):
                continue  # mmpretrain's uses num_classes only for mixed labels.
            if any(own in base.__name__ for base in type(head).__mro__ for own in _OWN_CLASSES):
                continue
            name = f'{place}[{number}]' if several else place
            yield ClassHead(name, num_classes, only_things=place.endswith(('bbox_head', 'mask_head')))
