"""Decoding and non-maximum suppression of mmdet's one-stage detectors with dense heads, in the graph."""

import math

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.gfl_head import GFLHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.errors import RAW_ADVICE
from mmgroupnet.deploy.onnx.steps import NO_SCORE, best_entries, suppress
from mmgroupnet.deploy.onnx.written import differing
from mmgroupnet.errors import UserError

# Keys of test_cfg that the graph supports.
_TEST_OPTIONS = ('score_thr', 'nms_pre', 'min_bbox_size', 'nms', 'max_per_img')
# Limit of the ratio of a box's side to its anchor's (and of its inverse), mmdet's default.
_LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
# mmcv's default of test_cfg.nms.split_thr: from that many candidates in a picture on, mmcv suppresses class by class,
# even if class_agnostic is set.
_SPLIT_THR = 10000


def head_of(model: nn.Module) -> nn.Module | None:
    """The dense head of a one-stage detector, or None."""
    head = getattr(model, 'bbox_head', None)
    return head if isinstance(model, SingleStageDetector) and isinstance(head, BaseDenseHead) else None


def _refuse_other_heads(model: nn.Module) -> None:
    """Refuses detectors that do not compute their detections in the same way as :class:`Detections`."""
    if head_of(model) is None or differing(model, ['predict'], SingleStageDetector):
        raise UserError(
            f'model={type(model).__name__}: the exporter supports only one-stage detectors with dense heads (FCOS, '
            f'ATSS, RetinaNet, GFL): {RAW_ADVICE}'
        )
    head = model.bbox_head
    single = GFLHead if isinstance(head, GFLHead) else BaseDenseHead
    own = [
        *differing(head, ['predict', 'predict_by_feat', '_bbox_post_process'], BaseDenseHead),
        *differing(head, ['_predict_by_feat_single'], single),
        *(differing(head, ['anchor_center'], GFLHead) if single is GFLHead else []),
    ]
    if own:
        raise UserError(f'bbox_head={type(head).__name__} has its own {", ".join(own)}: {RAW_ADVICE}')
    if type(head.bbox_coder) not in (DistancePointBBoxCoder, DeltaXYWHBBoxCoder) or getattr(
        head.bbox_coder, 'add_ctr_clamp', False
    ):
        raise UserError(
            f'bbox_coder={type(head.bbox_coder).__name__}: the graph decodes DistancePointBBoxCoder and '
            f'DeltaXYWHBBoxCoder (without add_ctr_clamp): {RAW_ADVICE}'
        )
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UserError(f'loss_cls={type(head.loss_cls).__name__} computes the scores in its own way: {RAW_ADVICE}')


def _check_test_cfg(test_cfg: ConfigDict | None, num_levels: int) -> None:
    """Refuses options of ``test_cfg`` that the graph does not support."""
    if test_cfg is None:
        raise UserError('test_cfg=None: decoding needs nms_pre, nms and max_per_img')
    for name in ('nms_pre', 'max_per_img'):
        value = test_cfg.get(name)
        if not isinstance(value, int) or value < 1:
            raise UserError(f'test_cfg.{name}={value}: the graph takes a number of at least 1')
    unknown = sorted(set(test_cfg) - set(_TEST_OPTIONS))
    if unknown:
        raise UserError(f'test_cfg.{unknown[0]}: the graph supports {", ".join(_TEST_OPTIONS)}')
    nms = dict(test_cfg.get('nms') or {})
    if nms.pop('type', None) != 'nms' or not {'iou_threshold'} <= set(nms) <= {
        'iou_threshold',
        'class_agnostic',
        'split_thr',
    }:
        raise UserError(
            f'test_cfg.nms={dict(test_cfg.get("nms") or {})}: the graph suppresses by '
            "dict(type='nms', iou_threshold=..., class_agnostic=..., split_thr=...)"
        )
    split_thr, most = nms.get('split_thr', _SPLIT_THR), num_levels * test_cfg.nms_pre
    if nms.get('class_agnostic', False) and most >= split_thr:
        raise UserError(
            f'test_cfg.nms.split_thr={split_thr}: mmcv ignores class_agnostic for that many candidates or more, '
            f'the graph does not, and a picture may have {most} (nms_pre={test_cfg.nms_pre} of each of {num_levels} '
            f'levels): give split_thr={most + 1} or more'
        )


def _flat(maps: Tensor, channels: int) -> Tensor:
    """``(N, A * channels, H, W)`` to ``(N, H * W * A, channels)``."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)


def _rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of ``(N, n, c)`` by ``(N, k)``: ``(N, k, c)``."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class Detections(nn.Module):
    """Computes boxes from the maps of a dense head, as the detector's ``predict`` with ``rescale=False`` does.

    ``min_bbox_size`` counts pixels of ``image``, not of the picture before it was resized.

    Args:
        model: A one-stage detector with a dense head.

    Shape: the picture, the network's input and its maps to ``dets`` ``(N, n, 5)`` and ``labels`` ``(N, n)``, see
    docs/onnx_file.md.

    Raises:
        UserError: If the head or its ``test_cfg`` is not supported.
    """

    outputs = ('dets', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _refuse_other_heads(model)
        head = model.bbox_head
        _check_test_cfg(head.test_cfg, head.prior_generator.num_levels)
        # Not the head itself, because its layers belong to the network.
        self.test_cfg = head.test_cfg
        self.prior_generator = head.prior_generator
        self.bbox_coder = head.bbox_coder
        self.cls_out_channels = head.cls_out_channels
        self.use_sigmoid_cls = head.use_sigmoid_cls
        # The values over which GFL's distances are distributed.
        self.register_buffer('project', head.integral.project.clone() if isinstance(head, GFLHead) else None)

    def forward(self, image: Tensor, x: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        test_cfg = self.test_cfg
        boxes, scores, labels = self._candidates(image, maps)
        if test_cfg.get('min_bbox_size', -1) >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = torch.where((sides > test_cfg.min_bbox_size).all(-1), scores, NO_SCORE)
        apart = boxes
        if not test_cfg.nms.get('class_agnostic', False):
            # As in mmcv, boxes of each class are moved to a separate region, so that classes do not suppress each
            # other.
            largest = torch.where(scores.unsqueeze(-1) > NO_SCORE, boxes, 0).amax((1, 2)) + 1
            apart = boxes + (labels * largest.unsqueeze(-1)).unsqueeze(-1)
        kept = suppress(apart, scores, float(test_cfg.nms.iou_threshold), test_cfg.max_per_img)
        is_kept, kept = kept >= 0, kept.clamp(min=0)
        dets = _rows(torch.cat([boxes, scores.unsqueeze(-1)], -1), kept)
        return torch.where(is_kept.unsqueeze(-1), dets, 0), torch.where(is_kept, labels.gather(1, kept), -1)

    def _candidates(self, image: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes ``(N, M, 4)``, their scores and labels ``(N, M)``; entries that are not candidates have the score
        :data:`NO_SCORE`."""
        generator = self.prior_generator
        # Classes of all levels come first, then their boxes, then the factors of their scores, if there are any.
        levels = [maps[i :: generator.num_levels] for i in range(generator.num_levels)]
        sizes = [level[0].shape[-2:] for level in levels]
        priors = generator.grid_priors(sizes, dtype=torch.float32, device=image.device)
        found = [
            self._of_level(*level, priors=of_level, stride=stride)
            for level, of_level, stride in zip(levels, priors, generator.strides, strict=True)
        ]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        if self.bbox_coder.clip_border:
            # Clip at the original picture, without the padding of the preprocessing.
            height, width = image.shape[1:3]
            x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
            boxes = torch.stack([x, y], -1).flatten(-2)
        return boxes, scores, labels

    def _of_level(
        self,
        classes: Tensor,
        deltas: Tensor,
        factors: Tensor | None = None,
        *,
        priors: Tensor,
        stride: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of a pyramid level from the maps of the head, in the form of :meth:`_candidates`."""
        logits = _flat(classes, self.cls_out_channels)
        # The background is the last class.
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
        num_classes = scores.shape[-1]
        scores, places = best_entries(scores.flatten(1), self.test_cfg.nms_pre)
        indices = places // num_classes
        is_candidate = scores > self.test_cfg.get('score_thr', 0)
        if factors is not None:
            scores = scores * _rows(_flat(factors, 1).sigmoid(), indices).squeeze(-1)
        scores = torch.where(is_candidate, scores, NO_SCORE)
        priors = priors[indices]
        if self.project is not None:
            distributions = _rows(_flat(deltas, 4 * len(self.project)), indices).unflatten(-1, (4, -1)).softmax(-1)
            distances = F.linear(distributions, self.project.unsqueeze(0)).squeeze(-1) * stride[0]
            boxes = _decode_distances((priors[..., :2] + priors[..., 2:]) / 2, distances)
        else:
            decode = _decode_distances if type(self.bbox_coder) is DistancePointBBoxCoder else self._decode_deltas
            boxes = decode(priors, _rows(_flat(deltas, 4), indices))
        return boxes, scores, places % num_classes

    def _decode_deltas(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Boxes as moved and scaled anchors, as in mmdet's DeltaXYWHBBoxCoder."""
        coder = self.bbox_coder
        deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
        sides = anchors[..., 2:] - anchors[..., :2]
        centers = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + sides * deltas[..., :2]
        halves = sides * deltas[..., 2:].clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp() * 0.5
        return torch.cat([centers - halves, centers + halves], -1)


def _decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes around points, from the distances to their left, upper, right and lower sides."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)
