"""The class map of mmseg's segmentors, in the graph."""

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.errors import NotExportable
from mmgroupnet.deploy.onnx.steps import resize_to
from mmgroupnet.deploy.onnx.written import differing


def head_of(model: nn.Module) -> nn.Module | None:
    """The decode head of an EncoderDecoder; None: it has none, or a cascade of them."""
    head = getattr(model, 'decode_head', None)
    return head if isinstance(model, EncoderDecoder) and isinstance(head, BaseDecodeHead) else None


class Segmentor(nn.Module):
    """A segmentor that gives its answer, as its ``predict`` does.

    Args:
        model: An EncoderDecoder that is tested on whole pictures, in evaluation mode.
        preprocessing: Its data preprocessor.
        with_scores: Whether it gives the scores, too. Default: False.

    Shape: uint8 ``(N, H, W, 3)`` and int64 ``(2,)`` to ``classes`` ``(N, height, width)`` and ``scores``, see
    docs/onnx_file.md.

    Raises:
        NotExportable: If the segmentor is not covered.
    """

    def __init__(self, model: nn.Module, preprocessing: nn.Module, with_scores: bool = False) -> None:
        super().__init__()
        advice = 'export its maps (--raw; raw=True) and make the answer from them'
        head = head_of(model)
        if head is None:
            raise NotExportable(
                f'model={type(model).__name__}: the graph holds the answer of an EncoderDecoder with one decode head: '
                f'{advice}'
            )
        own = [
            *differing(model, ['predict', 'inference', 'whole_inference', 'encode_decode'], EncoderDecoder),
            *differing(model, ['postprocess_result'], BaseSegmentor),
            *differing(head, ['predict', 'predict_by_feat'], BaseDecodeHead),
        ]
        if own:
            raise NotExportable(
                f'model={type(model).__name__} with decode_head={type(head).__name__} has its own {", ".join(own)}: '
                f'{advice}'
            )
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise NotExportable(
                f"test_cfg.mode={model.test_cfg.mode!r}: the graph takes whole pictures, test_cfg.mode='whole': {advice}"
            )
        if model.out_channels > 256:
            raise NotExportable(f'num_classes={model.out_channels}: a class map of 8 bits holds 256: {advice}')
        self.preprocessing = preprocessing
        self.model = model
        self.with_scores = with_scores

    @property
    def outputs(self) -> tuple[str, ...]:
        return ('classes', 'scores') if self.with_scores else ('classes',)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        x = self.preprocessing(image)
        scores = model.decode_head(model.extract_feat(x))
        scores = F.interpolate(scores, x.shape[2:], mode='bilinear', align_corners=model.align_corners)
        scores = scores[:, :, : image.shape[1], : image.shape[2]]  # Without what the preprocessing has padded.
        scores = resize_to(scores, size, model.align_corners)
        if model.out_channels == 1:
            scores = scores.sigmoid()
            classes = scores.squeeze(1) > model.decode_head.threshold
        else:
            classes = scores.argmax(1)
        return (classes.to(torch.uint8), scores)[: len(self.outputs)]
