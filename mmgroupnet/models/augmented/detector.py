"""Test-time augmentation of detectors."""

from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict

from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class AugmentedDetector(DetTTAModel):
    """mmdet's ``DetTTAModel``, which merges only boxes, with an error for models that predict something else.

    Args:
        tta_cfg: ``nms`` and ``max_per_img`` of the merged boxes. Default: the values of most models of mmdet.
        kwargs: As for ``DetTTAModel``.
    """

    def __init__(self, tta_cfg: dict | None = None, **kwargs) -> None:
        default = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        super().__init__(tta_cfg=ConfigDict(default if tta_cfg is None else tta_cfg), **kwargs)

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        for sample in data_samples:
            found = sorted(key for key in sample.keys() if key.startswith('pred_'))
            if found != ['pred_instances'] or 'masks' in sample.pred_instances:
                parts = [key for key in found if key != 'pred_instances'] or ['masks']
                raise UserError(
                    f'--tta: only boxes can be merged, and {type(self.module).__name__} predicts '
                    f'{" and ".join(parts)}: test it without --tta'
                )
        return super()._merge_single_sample(data_samples)
