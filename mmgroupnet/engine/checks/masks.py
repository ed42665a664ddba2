"""Masks for segmentation: ids that are no classes, masks in colours, classes that never occur."""

import logging
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import Dataset

from mmgroupnet.engine.checks.classes import classes_of
from mmgroupnet.engine.checks.samples import innermost, spread, transforms_of
from mmgroupnet.errors import UserError

# Masks of a data set that are looked at before the first step.
_LOOKED_AT = 8
# Of more classes some may well be missing in so few masks.
_FEW_CLASSES = 4
# An error names so many ids.
_LISTED_IDS = 10
# Transforms of these packages leave ids as they are.
_KNOWN = ('mmcv.', 'mmseg.', 'mmdet.')


class MaskError(UserError):
    """A mask does not fit the classes.

    A worker's error reaches the run with the worker's traceback as its text; the sentence is at its end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


def ids_of(mask: np.ndarray) -> list[int]:
    """The ids that occur in a mask, ``(H, W)``, in ascending order."""
    if mask.dtype == np.uint8:  # A tenth of the time of np.unique.
        return np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256])).tolist()
    return np.unique(mask).tolist()


class MaskRule:
    """What the masks of a data set may hold.

    Args:
        dataset: A data set of mmseg, or one like them, with ``ignore_index`` and classes.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = type(dataset).__name__
        self.classes = classes_of(dataset)
        self.ignored = dataset.ignore_index

    def check(self, sample: dict) -> list[int]:
        """Checks the mask of a sample, ``gt_seg_map``.

        Returns:
            The ids that occur in it.

        Raises:
            MaskError: Naming the mask's file, and the ids that are no classes or the shape that no mask has.
        """
        mask = sample['gt_seg_map']
        name = sample.get('seg_map_path') or f'of {sample.get("img_path")}'
        if mask.ndim != 2:
            raise MaskError(
                f'mask {name} has the shape {mask.shape}: {self.dataset} takes masks of one channel, whose values are '
                'the ids of the classes; convert the masks (tools/dataset_converters)'
            )
        ids = ids_of(mask)
        count = len(self.classes)
        wrong = [found for found in ids if not 0 <= found < count and found != self.ignored]
        if wrong:
            listed = ', '.join(map(str, wrong[:_LISTED_IDS])) + (', ...' if len(wrong) > _LISTED_IDS else '')
            raise MaskError(
                f'mask {name} holds the ids {listed}: {self.dataset} has the {count} classes 0 to {count - 1} and '
                f'{self.ignored} for what is ignored; convert the masks (tools/dataset_converters) or give the dataset '
                'its classes (metainfo, reduce_zero_label)'
            )
        return ids

    def warn_of_absent(self, seen: set[int], where: str) -> None:
        """Warns of classes that never occur while the id that is ignored does: masks of 0 and 255 train nothing.

        Args:
            seen: The ids that occur.
            where: In which masks.
        """
        absent = [number for number in range(len(self.classes)) if number not in seen]
        if absent and self.ignored in seen:
            several = len(absent) > 1
            named = ', '.join(f'{number} ({self.classes[number]!r})' for number in absent[:_LISTED_IDS])
            print_log(
                f'{"classes" if several else "class"} {named} never {"occur" if several else "occurs"} in {where}, '
                f'while {self.ignored}, which is ignored, does. If {self.ignored} stands for a class there, convert the '
                f'masks to the ids 0 to {len(self.classes) - 1}',
                logger='current',
                level=logging.WARNING,
            )


def rule_of(dataset: Dataset) -> MaskRule | None:
    """The rule for the masks of a data set, or None where its masks, if it has any, do not hold its classes."""
    if getattr(dataset, 'ignore_index', None) is None or not classes_of(dataset):
        return None
    return MaskRule(dataset)


def check_masks(dataset: Dataset, owner: str) -> None:
    """Checks a few masks of a data set before the first step.

    Where transforms of other people may change the ids, nothing is said: the workers will see.

    Args:
        dataset: The data set, without wrappers.
        owner: Whose it is, as 'train_dataloader'.

    Raises:
        MaskError: As of :meth:`MaskRule.check`.
    """
    rule = rule_of(dataset)
    transforms = transforms_of(dataset)
    load = next((transform for transform in transforms if getattr(transform, 'with_seg', False)), None)
    if rule is None or load is None:
        return
    if any(not type(transform).__module__.startswith(_KNOWN) for transform in transforms):
        return
    seen: set[int] = set()
    numbers = spread(len(dataset), _LOOKED_AT)
    for number in numbers:
        seen |= set(rule.check(load(dataset.get_data_info(number))))
    if len(rule.classes) <= _FEW_CLASSES:
        rule.warn_of_absent(seen, f'the {len(numbers)} masks of {owner} that were looked at')


class WatchedPacking:
    """The last transform of a pipeline, and a look at the mask before it, in the worker that has it at hand.

    Args:
        pack: The transform.
        rule: What the masks may hold.

    Attributes:
        seen: Which ids 0 to 255 occurred in any worker, ``(256,)``.
    """

    def __init__(self, pack: Callable, rule: MaskRule) -> None:
        self.pack = pack
        self.rule = rule
        self.seen = torch.zeros(256, dtype=torch.bool).share_memory_()

    def __call__(self, sample: dict) -> dict:
        """Checks the mask of a sample and packs it.

        Raises:
            MaskError: As of :meth:`MaskRule.check`.
        """
        if sample.get('gt_seg_map') is not None:
            self.seen[[found for found in self.rule.check(sample) if 0 <= found < len(self.seen)]] = True
        return self.pack(sample)

    def __repr__(self) -> str:
        return repr(self.pack)


def _pipelines(dataset: Dataset) -> Iterator[list]:
    """The lists of transforms of a data set and of all inside it."""
    yield transforms_of(dataset)
    for name in ('dataset', 'datasets', '_dataset'):
        inner = getattr(dataset, name, None) or []
        for one in inner if isinstance(inner, list | tuple) else [inner]:
            yield from _pipelines(one)


def watch_masks(dataset: Dataset) -> list[WatchedPacking]:
    """Lets the workers of a data set look at every mask that they pack.

    Args:
        dataset: The data set, wrapped or not; its pipelines are changed in place, once.

    Returns:
        Those who watch.
    """
    rule = rule_of(next(innermost(dataset)))
    watched = []
    for transforms in _pipelines(dataset) if rule is not None else ():
        if transforms and type(transforms[-1]).__name__ == 'PackSegInputs':
            transforms[-1] = WatchedPacking(transforms[-1], rule)
        if transforms and isinstance(transforms[-1], WatchedPacking):
            watched.append(transforms[-1])
    return watched


def unwatch_masks(dataset: Dataset) -> None:
    """Undoes :func:`watch_masks`, for workers that are started from now on."""
    for transforms in _pipelines(dataset):
        if transforms and isinstance(transforms[-1], WatchedPacking):
            transforms[-1] = transforms[-1].pack


def warn_of_absent_classes(watched: Sequence[WatchedPacking], where: str) -> None:
    """Warns of classes that never occurred in what was packed while the ignored id did, see
    :meth:`MaskRule.warn_of_absent`."""
    if watched:
        seen = torch.stack([one.seen for one in watched]).any(dim=0)
        watched[0].rule.warn_of_absent(set(seen.nonzero().flatten().tolist()), where)
