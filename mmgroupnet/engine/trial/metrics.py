"""Tries a run's metrics with one batch."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmengine.evaluator import BaseMetric
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmgroupnet.engine.trial.isolation import copy_metric
from mmgroupnet.engine.trial.stages import DoubtfulError

# Metrics that can be computed from any batch, so an error in them would also come after the whole set. Others may need
# a result for every image of a file, or two kinds of images.
_METRICS_OF_ANY_BATCH = {
    'mmdet': ('CocoMetric', 'LVISMetric', 'VOCMetric'),
    'mmseg': ('IoUMetric',),
    'mmpretrain': ('Accuracy', 'AveragePrecision', 'MultiLabelMetric', 'SingleLabelMetric'),
}


def is_one_batch_enough(metric: BaseMetric) -> bool:
    """Whether a metric can compute all of its values from one batch."""
    owner = next(part for part in type(metric).__mro__ if 'compute_metrics' in vars(part))
    return owner.__name__ in _METRICS_OF_ANY_BATCH.get(owner.__module__.split('.')[0], ())


def as_samples(outputs: Sequence) -> list[dict]:
    """The predictions of a model, in the form that metrics take.

    If an untrained detector finds nothing in an image, the image gets one detection of zeros: without any detection
    mmdet's metrics compute nothing.

    Args:
        outputs: The result of a model's ``val_step``; losses at the end, which some models add, are dropped.
    """
    outputs = [output.to_dict() if isinstance(output, BaseDataElement) else output for output in outputs]
    if outputs and isinstance(outputs[-1], dict) and list(outputs[-1]) == ['loss']:
        outputs.pop()
    for output in outputs:
        found = output.get('pred_instances') if isinstance(output, dict) else None
        if (
            isinstance(found, dict)
            and 'scores' in found
            and all(isinstance(value, Tensor) and not len(value) for value in found.values())
        ):
            output['pred_instances'] = {name: value.new_zeros((1, *value.shape[1:])) for name, value in found.items()}
    return outputs


def try_metric(original: BaseMetric, samples: list[dict], batch: object, size: int) -> dict:
    """Lets a copy of a metric process a batch and compute its values.

    Args:
        original: The metric.
        samples: The result of :func:`as_samples`.
        batch: The batch.
        size: Number of images in the whole set.

    Returns:
        The values by name.

    Raises:
        NotTriedError: If the metric cannot be copied.
        DoubtfulError: If nothing can be computed, perhaps because the metric needs more than one batch.
        Exception: Of any type, if the whole set would raise it as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        metric = copy_metric(original, Path(folder))
        metric.process(batch, samples)
        try:
            if getattr(metric, 'img_ids', ()) is None:  # mmdet's metrics take all images of a file, which takes time.
                metric.img_ids = list(dict.fromkeys(truth['img_id'] for truth, _ in metric.results))
            return metric.evaluate(size)
        except Exception as error:  # Custom metrics raise any type.
            if len(samples) >= size or is_one_batch_enough(metric):
                raise
            raise DoubtfulError(f'{type(metric).__name__} may need more than one batch') from error
