"""Steps of decoding whose shapes depend on values, as torch ops, each with a translation to ONNX.

torch's exporter lacks translations for a number of candidates that depends on the picture, for a suppression over a
batch, and for a size that is an input. The ops also run in torch.
"""

import torch
import torch.nn.functional as F
from onnxscript import ir
from onnxscript import opset18 as standard
from torch import Tensor
from torchvision.ops import nms

# A score below all scores of a model; it marks entries that are not candidates.
NO_SCORE = -1.0


@torch.library.custom_op('mmgroupnet_onnx::best_entries', mutates_args=())
def best_entries(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best entries of each row in descending order; equal entries keep their order in the row.

    Args:
        scores: ``(N, n)``.
        count: Number of entries; all if there are fewer.

    Returns:
        Their scores and their places in the row (int64), both ``(N, min(count, n))``.
    """
    # Not topk, which returns equal entries in any order.
    best = scores.sort(dim=1, descending=True, stable=True)
    return best.values[:, :count].clone(), best.indices[:, :count].clone()


@best_entries.register_fake
def _(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], torch.sym_min(count, scores.shape[1]))
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


def _best_entries(scores: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
    length = standard.Shape(scores, start=1, end=2)
    return standard.TopK(scores, standard.Min(length, standard.Constant(value_ints=[count])), axis=1)


@torch.library.custom_op('mmgroupnet_onnx::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> Tensor:
    """Non-maximum suppression of each picture.

    Args:
        boxes: ``(N, M, 4)``, x1, y1, x2, y2.
        scores: ``(N, M)``; boxes with the score :data:`NO_SCORE` are not candidates.
        iou_threshold: If two boxes overlap more than this, the better one is kept.
        count: Maximum number of boxes per picture.

    Returns:
        Indices of the kept boxes, the best one first and among equal ones the one with the lower index, int64
        ``(N, n)``; n is the largest number in a picture, and shorter rows end in -1.
    """
    kept = []
    for of_picture, score in zip(boxes, scores, strict=True):
        candidates = (score > NO_SCORE).nonzero()[:, 0]
        kept.append(candidates[nms(of_picture[candidates], score[candidates], iou_threshold)[:count]])
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> Tensor:
    number = torch.library.get_ctx().new_dynamic_size(min=0, max=count)
    return scores.new_empty(scores.shape[0], number, dtype=torch.int64)


def _suppress(boxes: ir.Value, scores: ir.Value, iou_threshold: float, count: int) -> ir.Value:
    # A single class, because the caller has moved the boxes of different classes apart.
    kept = standard.NonMaxSuppression(
        boxes,
        standard.Unsqueeze(scores, standard.Constant(value_ints=[1])),
        standard.Constant(value_ints=[count]),
        standard.Constant(value_floats=[iou_threshold]),
        # Above the score of non-candidates, below all others.
        standard.Constant(value_floats=[NO_SCORE / 2]),
    )
    # From a list of (picture, class, box) to one row per picture, sorted by the scores of the kept boxes.
    places = standard.Gather(kept, standard.Constant(value_ints=[0, 2]), axis=1)
    of_kept = standard.GatherND(scores, places)
    nothing = standard.Expand(standard.Constant(value_floats=[NO_SCORE]), standard.Shape(scores))
    left = standard.ScatterND(nothing, places, of_kept)
    is_left = standard.Greater(left, standard.Constant(value_floats=[NO_SCORE / 2]))
    numbers = standard.ReduceSum(
        standard.Cast(is_left, to=ir.DataType.INT64), standard.Constant(value_ints=[1]), keepdims=0
    )
    most = standard.ReduceMax(numbers, standard.Constant(value_ints=[0]), keepdims=1)
    values, indices = standard.TopK(left, most, axis=1)
    return standard.Where(
        standard.Greater(values, standard.Constant(value_floats=[NO_SCORE / 2])),
        indices,
        standard.Constant(value_ints=[-1]),
    )


@torch.library.custom_op('mmgroupnet_onnx::resize_to', mutates_args=())
def resize_to(x: Tensor, size: Tensor, align_corners: bool) -> Tensor:
    """Resizes a map bilinearly.

    Args:
        x: ``(N, C, H, W)``.
        size: int64 ``(2,)``, height and width.
        align_corners: As for ``torch.nn.functional.interpolate``.

    Returns:
        ``(N, C, height, width)``.
    """
    return F.interpolate(x, size.tolist(), mode='bilinear', align_corners=align_corners)


@resize_to.register_fake
def _(x: Tensor, size: Tensor, align_corners: bool) -> Tensor:
    height, width = (torch.library.get_ctx().new_dynamic_size(min=1) for _ in range(2))
    return x.new_empty(*x.shape[:2], height, width)


def _resize_to(x: ir.Value, size: ir.Value, align_corners: bool) -> ir.Value:
    shape = standard.Concat(standard.Shape(x, start=0, end=2), size, axis=0)
    mode = 'align_corners' if align_corners else 'half_pixel'
    return standard.Resize(x, None, None, shape, mode='linear', coordinate_transformation_mode=mode)


def step_translations() -> dict:
    """The ``custom_translation_table`` of torch's exporter for these ops."""
    return {
        torch.ops.mmgroupnet_onnx.best_entries.default: _best_entries,
        torch.ops.mmgroupnet_onnx.suppress.default: _suppress,
        torch.ops.mmgroupnet_onnx.resize_to.default: _resize_to,
    }
