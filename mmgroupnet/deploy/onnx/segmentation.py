"""The class map of mmseg's segmentors, in the graph."""

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.errors import RAW_ADVICE
from mmgroupnet.deploy.onnx.steps import resize_to
from mmgroupnet.deploy.onnx.written import differing
from mmgroupnet.errors import UserError


def head_of(model: nn.Module) -> nn.Module | None:
    """The decode head of an EncoderDecoder; None if it has none or a cascade of heads."""
    head = getattr(model, 'decode_head', None)
    return head if isinstance(model, EncoderDecoder) and isinstance(head, BaseDecodeHead) else None


class ClassMap(nn.Module):
    """Computes the class map from the scores of a decode head, as the segmentor's ``predict`` does.

    Args:
        model: An EncoderDecoder that is tested on whole pictures.
        with_scores: Whether it returns the scores, too. Default: False.

    Shape: the picture, the network's input, its map and int64 ``(2,)`` to ``classes`` ``(N, height, width)`` and
    ``scores``, see docs/onnx_file.md.

    Raises:
        UserError: If the segmentor is not supported.
    """

    def __init__(self, model: nn.Module, with_scores: bool = False) -> None:
        super().__init__()
        head = head_of(model)
        if head is None:
            raise UserError(
                f'model={type(model).__name__}: the exporter supports only an EncoderDecoder with one decode head: '
                f'{RAW_ADVICE}'
            )
        own = [
            *differing(model, ['predict', 'inference', 'whole_inference', 'encode_decode'], EncoderDecoder),
            *differing(model, ['postprocess_result'], BaseSegmentor),
            *differing(head, ['predict', 'predict_by_feat'], BaseDecodeHead),
        ]
        if own:
            raise UserError(
                f'model={type(model).__name__} with decode_head={type(head).__name__} has its own {", ".join(own)}: '
                f'{RAW_ADVICE}'
            )
        if (model.test_cfg or {}).get('mode', 'whole') != 'whole':
            raise UserError(
                f'test_cfg.mode={model.test_cfg.mode!r}: the graph takes whole pictures, '
                f"test_cfg.mode='whole': {RAW_ADVICE}"
            )
        if model.out_channels > 256:
            raise UserError(f'num_classes={model.out_channels}: a class map of 8 bits holds 256: {RAW_ADVICE}')
        self.align_corners = model.align_corners
        # Threshold for a single score; above it a pixel has class 1.
        self.threshold = head.threshold if model.out_channels == 1 else None
        self.outputs = ('classes', 'scores') if with_scores else ('classes',)

    def forward(self, image: Tensor, x: Tensor, maps: tuple[Tensor, ...], size: Tensor) -> tuple[Tensor, ...]:
        (scores,) = maps
        scores = F.interpolate(scores, x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        scores = scores[:, :, : image.shape[1], : image.shape[2]]  # Without the padding of the preprocessing.
        scores = resize_to(scores, size, self.align_corners)
        if self.threshold is None:
            classes = scores.argmax(1)
        else:
            scores = scores.sigmoid()
            classes = scores.squeeze(1) > self.threshold
        return (classes.to(torch.uint8), scores)[: len(self.outputs)]
