"""Test-time augmentation of segmentors."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class AugmentedSegmentor(BaseTTAModel):
    """Averages the scores of the augmented pictures, for heads of any number of channels.

    mmseg's ``SegTTAModel`` takes the sigmoid of one-channel scores, which are a sigmoid already: all of them would be
    0.5 or more.

    Args:
        module: The segmentor, or its config.
        data_preprocessor: As for ``BaseTTAModel``. Default: None.
    """

    def merge_preds(self, data_samples_list: Sequence[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """Merges the predictions for each picture.

        Args:
            data_samples_list: By pictures; each list has a sample per augmentation, with ``seg_logits`` of
                ``(C, H, W)``, mirrored back.

        Returns:
            A sample per picture: the first one, with the mean scores (C > 1: of softmax) as ``seg_logits`` and the
            classes as ``pred_sem_seg``, ``(1, H, W)``.

        Raises:
            UserError: If the model predicts something else.
        """
        return [self._merge(samples) for samples in data_samples_list]

    def _merge(self, samples: Sequence[SegDataSample]) -> SegDataSample:
        merged = samples[0]
        if 'seg_logits' not in merged:
            raise UserError(
                f'--tta: scores of classes alone can be merged, and {type(self.module).__name__} predicts '
                f'{" and ".join(sorted(merged.keys()))}: test it without --tta'
            )
        is_binary = len(merged.seg_logits.data) == 1
        mean = torch.zeros_like(merged.seg_logits.data)
        for sample in samples:  # One by one: scores of many classes are large.
            scores = sample.seg_logits.data
            mean += scores if is_binary else scores.softmax(dim=0)
        mean /= len(samples)
        if is_binary:
            head = self.module.decode_head
            head = head[-1] if isinstance(head, nn.ModuleList) else head  # The last one of a cascade answers.
            classes = (mean > head.threshold).to(mean)
        else:
            classes = mean.argmax(dim=0, keepdim=True)
        merged.set_data(dict(seg_logits=PixelData(data=mean), pred_sem_seg=PixelData(data=classes)))
        return merged
