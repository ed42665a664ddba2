"""Test-time augmentation of classifiers."""

from collections.abc import Sequence

import torch
from mmpretrain.models import AverageClsScoreTTA, MultiLabelClsHead
from mmpretrain.structures import DataSample

from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class AugmentedClassifier(AverageClsScoreTTA):
    """mmpretrain's ``AverageClsScoreTTA`` with labels of the mean scores.

    The samples of mmpretrain's class keep the label of the first augmentation.
    """

    def _merge_single_sample(self, data_samples: Sequence[DataSample]) -> DataSample:
        if any('pred_score' not in sample for sample in data_samples):
            raise UserError(
                f'--tta: only scores of classes can be merged, and {type(self.module).__name__} predicts none: test '
                'it without --tta'
            )
        merged = super()._merge_single_sample(data_samples)
        head = getattr(self.module, 'head', None)
        if not isinstance(head, MultiLabelClsHead):
            labels = merged.pred_score.argmax(dim=0, keepdim=True)
        elif head.thr is not None:
            labels = torch.where(merged.pred_score >= head.thr)[0]
        else:
            labels = merged.pred_score.topk(head.topk).indices
        return merged.set_pred_label(labels)
