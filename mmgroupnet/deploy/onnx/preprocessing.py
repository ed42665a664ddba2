"""The data preprocessors of mmdet, mmseg and mmpretrain as a part of the graph."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgroupnet.errors import UserError


class Preprocessing(nn.Module):
    """Channel order, normalisation and padding of a picture.

    Args:
        swaps_channels: Whether the network reads RGB.
        mean, std: One value per channel, or one for all; both None for no normalisation.
        divisor: Height and width are padded to multiples of it, at the bottom and on the right. Default: 1.
        size: Smaller pictures are padded to this (height, width). Default: None.
        pad_value: Value of the padding. Default: 0.

    Shape: uint8 ``(N, H, W, 3)``, BGR, to float32 ``(N, 3, H', W')``.
    """

    def __init__(
        self,
        swaps_channels: bool,
        mean: Tensor | None,
        std: Tensor | None,
        divisor: int = 1,
        size: Sequence[int] | None = None,
        pad_value: float = 0,
    ) -> None:
        super().__init__()
        self.swaps_channels = swaps_channels
        self.divisor = divisor
        self.size = None if size is None else tuple(size)
        self.pad_value = float(pad_value)
        self.register_buffer('mean', None if mean is None else mean.detach().clone())
        self.register_buffer('std', None if std is None else std.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2)
        if self.swaps_channels:
            x = x.flip(1)
        x = x.float()
        if self.mean is not None:
            x = (x - self.mean) / self.std
        if self.size is not None:
            missing = (least - given for least, given in zip(self.size, x.shape[2:], strict=True))
            bottom, right = (torch.sym_max(number, 0) for number in missing)
        elif self.divisor > 1:
            bottom, right = (-given % self.divisor for given in x.shape[2:])
        else:
            return x
        padding: Any = (0, right, 0, bottom)  # symbols while it is traced
        return F.pad(x, padding, value=self.pad_value)


def _of_mmdet(preprocessor: nn.Module) -> dict:
    return dict(
        swaps_channels=preprocessor._channel_conversion,
        divisor=preprocessor.pad_size_divisor,
        pad_value=preprocessor.pad_value,
    )


def _of_mmseg(preprocessor: nn.Module) -> dict:
    # In a test, only its test_cfg applies to padding: size and size_divisor beside it are for training.
    padding = preprocessor.test_cfg or {}
    # The maintained fork derives the class from mmengine's, where the attribute is private.
    is_public = hasattr(preprocessor, 'channel_conversion')
    return dict(
        swaps_channels=preprocessor.channel_conversion if is_public else preprocessor._channel_conversion,
        size=padding.get('size'),
        divisor=padding.get('size_divisor') or 1,
        pad_value=preprocessor.pad_val,
    )


def _of_mmpretrain(preprocessor: nn.Module) -> dict:
    return dict(
        swaps_channels=preprocessor.to_rgb, divisor=preprocessor.pad_size_divisor, pad_value=preprocessor.pad_value
    )


# By module and class name, because a library may not be installed: the task, and the function that reads the options.
_KINDS = {
    ('mmdet.models.data_preprocessors.data_preprocessor', 'DetDataPreprocessor'): ('detection', _of_mmdet),
    ('mmseg.models.data_preprocessor', 'SegDataPreProcessor'): ('segmentation', _of_mmseg),
    ('mmpretrain.models.utils.data_preprocessor', 'ClsDataPreprocessor'): ('classification', _of_mmpretrain),
}


def read_preprocessor(preprocessor: nn.Module) -> tuple[str, Preprocessing]:
    """Reads the data preprocessor of a model.

    Args:
        preprocessor: mmdet's DetDataPreprocessor, mmseg's SegDataPreProcessor or mmpretrain's ClsDataPreprocessor.
            Their batch augmentations are for training, and are ignored as in a test.

    Returns:
        The task of its library, and the same preprocessing in a graph.

    Raises:
        UserError: If it is of another class.
    """
    kind = type(preprocessor)
    if (kind.__module__, kind.__name__) not in _KINDS:
        raise UserError(
            f'data_preprocessor={kind.__name__}: the graph can hold {", ".join(name for _, name in _KINDS)}'
        )
    task, read = _KINDS[kind.__module__, kind.__name__]
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return task, Preprocessing(mean=mean, std=std, **read(preprocessor))
