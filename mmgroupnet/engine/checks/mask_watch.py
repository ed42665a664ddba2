"""Checks every mask in the worker that loads it, at no cost for the run."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from mmengine.dataset import BaseDataset

from mmgroupnet.engine.checks.masks import MaskRule, rule_of
from mmgroupnet.engine.checks.samples import innermost, transforms_of


class WatchedPacking:
    """The last transform of a pipeline, with a check of the mask before it, in the worker.

    Args:
        pack: The transform.
        rule: The rule for masks.

    Attributes:
        seen: Flags of the ids 0 to 255 that occurred in any worker, ``(256,)``.
    """

    def __init__(self, pack: Callable, rule: MaskRule) -> None:
        self.pack = pack
        self.rule = rule
        self.seen = torch.zeros(256, dtype=torch.bool).share_memory_()

    def __call__(self, sample: dict) -> dict:
        """Checks the mask of a sample and packs it.

        Raises:
            UserError: As :meth:`MaskRule.check`.
        """
        if sample.get('gt_seg_map') is not None:
            self.seen[[found for found in self.rule.check(sample) if 0 <= found < len(self.seen)]] = True
        return self.pack(sample)

    def __repr__(self) -> str:
        return repr(self.pack)


def _pipelines(dataset: BaseDataset) -> Iterator[list]:
    """The lists of transforms of a data set and of all data sets inside it."""
    yield transforms_of(dataset)
    for name in ('dataset', 'datasets', '_dataset'):
        inner = getattr(dataset, name, None) or []
        for one in inner if isinstance(inner, list | tuple) else [inner]:
            yield from _pipelines(one)


def watch_masks(dataset: BaseDataset, ignored: Collection[int] = ()) -> list[WatchedPacking]:
    """Lets the workers of a data set check every mask that they pack.

    Args:
        dataset: The data set, wrapped or not; its pipelines are changed in place, once.
        ignored: Ids that the heads ignore. Default: none.

    Returns:
        The checking transforms.
    """
    rule = rule_of(next(innermost(dataset)), ignored)
    watched = []
    if rule is None:
        return []
    for transforms in _pipelines(dataset):
        if transforms and type(transforms[-1]).__name__ == 'PackSegInputs':
            transforms[-1] = WatchedPacking(transforms[-1], rule)
        if transforms and isinstance(transforms[-1], WatchedPacking):
            watched.append(transforms[-1])
    return watched


def unwatch_masks(dataset: BaseDataset) -> None:
    """Undoes :func:`watch_masks`, for workers that start from now on."""
    for transforms in _pipelines(dataset):
        if transforms and isinstance(transforms[-1], WatchedPacking):
            transforms[-1] = transforms[-1].pack


def warn_of_absent_classes(watched: Sequence[WatchedPacking], where: str) -> None:
    """Warns of classes that never occurred in packed masks although the ignored id did, see
    :meth:`MaskRule.warn_of_absent`."""
    if watched:
        seen = torch.stack([one.seen for one in watched]).any(dim=0)
        watched[0].rule.warn_of_absent(set(seen.nonzero().flatten().tolist()), where)
