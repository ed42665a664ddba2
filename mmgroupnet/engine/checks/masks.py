"""Checks masks for segmentation: ids that are not classes, masks in colours, classes that never occur."""

import logging
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from PIL import Image

from mmgroupnet.engine.checks.classes import classes_of
from mmgroupnet.engine.checks.samples import KNOWN_PACKAGES, spread, transforms_of
from mmgroupnet.errors import UserError

# Number of masks of a data set that are checked before the first step.
_LOOKED_AT = 8
# A sample of that size may lack some classes if there are more than this.
_FEW_CLASSES = 4
# Number of ids that an error names.
_LISTED_IDS = 10


def ids_of(mask: np.ndarray) -> list[int]:
    """The ids that occur in a mask, ``(H, W)``, in ascending order."""
    if mask.dtype == np.uint8:  # This takes a tenth of the time of np.unique.
        return np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256])).tolist()
    return np.unique(mask).tolist()


class MaskRule:
    """The rule for the masks of a data set.

    Args:
        dataset: A data set of mmseg, or a similar one, with ``ignore_index`` and classes.
        ignored: Further ids that the heads ignore. Default: none.
    """

    def __init__(self, dataset: BaseDataset, ignored: Collection[int] = ()) -> None:
        self.dataset = type(dataset).__name__
        self.classes = classes_of(dataset) or []
        self.ignored = dataset.ignore_index
        self.passed = {self.ignored, *ignored}

    def check(self, sample: dict) -> list[int]:
        """Checks the mask of a sample, ``gt_seg_map``.

        Returns:
            The ids that occur in it.

        Raises:
            UserError: The message names the mask's file, and the ids that are not classes or the wrong shape.
        """
        mask = sample['gt_seg_map']
        name = sample.get('seg_map_path') or f'of {sample.get("img_path")}'
        if mask.ndim != 2:
            raise UserError(
                f'mask {name} has the shape {mask.shape}: {self.dataset} takes masks of one channel, whose values are '
                'the ids of the classes; convert the masks (tools/dataset_converters)'
            )
        ids = ids_of(mask)
        count = len(self.classes)
        wrong = [found for found in ids if not 0 <= found < count and found not in self.passed]
        if wrong:
            listed = ', '.join(map(str, wrong[:_LISTED_IDS])) + (', ...' if len(wrong) > _LISTED_IDS else '')
            raise UserError(
                f'mask {name} holds the ids {listed}: {self.dataset} has the {count} classes 0 to {count - 1} and '
                f'{self.ignored} for what is ignored; convert the masks (tools/dataset_converters) or give the dataset '
                'its classes (metainfo, reduce_zero_label) and the ignore_index of the head and the metric'
            )
        return ids

    def warn_of_absent(self, seen: set[int], where: str) -> None:
        """Warns of classes that never occur although the ignored id does: masks of 0 and 255 train nothing.

        Args:
            seen: The ids that occur.
            where: Description of the masks.
        """
        absent = [number for number in range(len(self.classes)) if number not in seen]
        if absent and self.ignored in seen:
            several = len(absent) > 1
            named = ', '.join(f'{number} ({self.classes[number]!r})' for number in absent[:_LISTED_IDS])
            print_log(
                f'{"classes" if several else "class"} {named} never {"occur" if several else "occurs"} in {where}, '
                f'while {self.ignored}, which is ignored, does. If {self.ignored} stands for a class there, convert '
                f'the masks to the ids 0 to {len(self.classes) - 1}',
                logger='current',
                level=logging.WARNING,
            )


def rule_of(dataset: BaseDataset, ignored: Collection[int] = ()) -> MaskRule | None:
    """The rule for the masks of a data set, or None if it has no masks or they do not hold its classes."""
    if getattr(dataset, 'ignore_index', None) is None or not classes_of(dataset):
        return None
    return MaskRule(dataset, ignored)


def _check_depth(path: str) -> None:
    """Checks that a mask of 16 bits or more holds ids below 256: mmseg reads only the lowest 8 bits."""
    if not Path(path).is_file():
        return  # Not on this disk.
    with Image.open(path) as picture:
        highest = int(np.asarray(picture).max()) if picture.mode.startswith(('I', 'F')) else 0
    if highest > 255:
        raise UserError(
            f'mask {path} holds ids up to {highest}, of which mmseg reads the lowest 8 bits ({highest} becomes '
            f'{highest % 256}); convert the masks to ids below 256'
        )


def check_masks(dataset: BaseDataset, owner: str, ignored: Collection[int] = ()) -> None:
    """Checks a few masks of a data set before the first step.

    If foreign transforms may change the ids, the masks are not checked here but later, in the workers.

    Args:
        dataset: The data set, without wrappers.
        owner: The owner of the data set, such as 'train_dataloader'.
        ignored: Ids that the heads ignore. Default: none.

    Raises:
        UserError: As :meth:`MaskRule.check`, and if ids take more than 8 bits.
    """
    rule = rule_of(dataset, ignored)
    transforms = transforms_of(dataset)
    load = next((transform for transform in transforms if getattr(transform, 'with_seg', False)), None)
    if rule is None or load is None:
        return
    if any(not type(transform).__module__.startswith(KNOWN_PACKAGES) for transform in transforms):
        return
    seen: set[int] = set()
    numbers = spread(len(dataset), _LOOKED_AT)
    for number in numbers:
        sample = load(dataset.get_data_info(number))
        _check_depth(sample['seg_map_path'])
        seen |= set(rule.check(sample))
    if len(rule.classes) <= _FEW_CLASSES:
        rule.warn_of_absent(seen, f'the {len(numbers)} masks of {owner} that were looked at')
