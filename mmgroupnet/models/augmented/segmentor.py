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

    mmseg's ``SegTTAModel`` takes the sigmoid of one-channel scores, which already are sigmoids: all of them would be
    0.5 or more.

    Args:
        module: The segmentor, or its config.
        data_preprocessor: As for ``BaseTTAModel``. Default: None.
    """

    def merge_preds(self, data_samples_list: Sequence[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """Merges the predictions for each picture.

        Args:
            data_samples_list: One list per picture, with a sample per augmentation whose ``seg_logits``, ``(C, H, W)``,
                are flipped back.

        Returns:
            A sample per picture: the first one, with the mean scores (of softmax if C > 1) as ``seg_logits`` and the
            classes as ``pred_sem_seg``, ``(1, H, W)``.

        Raises:
            UserError: If the model predicts something else.
        """
        return [self._merge(samples) for samples in data_samples_list]

    def _merge(self, samples: Sequence[SegDataSample]) -> SegDataSample:
        merged = samples[0]
        if 'seg_logits' not in merged:
            raise UserError(
                f'--tta: only scores of classes can be merged, and {type(self.module).__name__} predicts '
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
            head = head[-1] if isinstance(head, nn.ModuleList) else head  # The last head of a cascade predicts.
            classes = (mean > head.threshold).to(mean)
        else:
            classes = mean.argmax(dim=0, keepdim=True)
        merged.set_data(dict(seg_logits=PixelData(data=mean), pred_sem_seg=PixelData(data=classes)))
        return merged
