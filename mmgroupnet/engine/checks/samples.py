"""Checks a few samples of a data set before the first step: its files have to exist, and its labels to be classes."""

import logging
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from xml.etree import ElementTree

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmgroupnet.engine.checks.classes import classes_of
from mmgroupnet.engine.checks.heads import ClassHead
from mmgroupnet.errors import UserError, nearest

_LOOKED_AT = 32
# Packages whose transforms and data sets are known; others may do anything.
KNOWN_PACKAGES = ('mmcv.', 'mmengine.', 'mmdet.', 'mmseg.', 'mmpretrain.', 'mmgroupnet.')


def innermost(dataset: BaseDataset) -> Iterator[BaseDataset]:
    """The data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = next(
        (getattr(dataset, name) for name in ('dataset', 'datasets', '_dataset') if getattr(dataset, name, None)), None
    )
    if inner is None:
        yield dataset
        return
    for one in inner if isinstance(inner, list | tuple) else [inner]:
        yield from innermost(one)


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` numbers below ``size``: the first, the last, and evenly spread ones between them."""
    if size <= count:
        return list(range(size))
    return sorted({round(number * (size - 1) / (count - 1)) for number in range(count)})


def transforms_of(dataset: BaseDataset) -> list:
    """The list of transforms of a data set, or of a wrapper that mixes pictures."""
    pipeline = getattr(dataset, 'pipeline', None)
    transforms = getattr(pipeline, 'transforms', pipeline)
    return transforms if isinstance(transforms, list) else []


def _reads(dataset: BaseDataset) -> list[str]:
    """The keys of the local files that the pipeline has to read.

    A custom data set or transform may download files before they are read, so keys after it are left out.
    """
    if not type(dataset).prepare_data.__module__.startswith(KNOWN_PACKAGES):
        return []
    keys = []
    for transform in transforms_of(dataset):
        if not type(transform).__module__.startswith(KNOWN_PACKAGES):
            break
        if any(getattr(transform, name, None) for name in ('backend_args', 'file_client_args', 'ignore_empty')):
            return []
        name = type(transform).__name__
        if name.endswith('LoadImageFromFile'):
            keys.append('img_path')
        elif getattr(transform, 'with_seg', False):
            keys.append('seg_map_path')
    return keys


def _without_repeats(path: Path) -> Path | None:
    """The path without a folder that is repeated in it, if that file exists."""
    parts = path.parts
    for length in range(len(parts) // 2, 0, -1):
        for start in range(len(parts) - 2 * length + 1):
            middle = start + length
            if parts[start:middle] == parts[middle : middle + length]:
                shorter = Path(*parts[:start], *parts[middle:])
                if shorter.exists():
                    return shorter
    return None


def check_files(dataset: BaseDataset, owner: str) -> None:
    """Checks that pictures and masks of a few samples exist.

    Args:
        dataset: The data set.
        owner: The owner of the data set, such as 'train_dataloader'.

    Raises:
        UserError: The message names the first path that does not exist.
    """
    keys = _reads(dataset)
    numbers = spread(len(dataset), _LOOKED_AT) if keys else []
    missing = []
    for number in numbers:
        sample = dataset.get_data_info(number)
        paths = [sample.get(key) for key in keys]
        missing += [
            Path(path) for path in paths if isinstance(path, str) and '://' not in path and not Path(path).exists()
        ]
    if not missing:
        return
    shorter = _without_repeats(missing[0])
    advice = (
        f'{shorter} does: its folder is in data_root or data_prefix and in the names of '
        f'{dataset.ann_file or "the files"} again; leave it out of one of them'
        if shorter
        else f'Paths are made of data_root={dataset.data_root!r}, data_prefix={dict(dataset.data_prefix)} and the '
        f'names of {dataset.ann_file or "the files"}'
    )
    others = f', nor do {len(missing) - 1} others of the {len(numbers)} samples that were looked at'
    raise UserError(
        f'{missing[0]} ({owner}, {type(dataset).__name__}) does not exist{others if len(missing) > 1 else ""}. {advice}'
    )


def check_xml_names(dataset: BaseDataset, owner: str) -> None:
    """Warns if a few XML files lack a class but have a similar name that is not a class: objects of that name would be
    left out silently.

    Args:
        dataset: The data set.
        owner: The owner of the data set, such as 'train_dataloader'.
    """
    classes = classes_of(dataset) or []
    numbers = spread(len(dataset), _LOOKED_AT)
    paths = [dataset.get_data_info(number).get('xml_path') for number in numbers]
    if any(not isinstance(path, str) or not Path(path).is_file() for path in paths):
        return
    found = {entry.findtext('name', '') for path in paths for entry in ElementTree.parse(path).iter('object')}
    for name in classes:
        hint = nearest(name, found - {*classes, ''})
        if name not in found and hint:
            print_log(
                f'the class {name!r} of {owner} ({type(dataset).__name__}) is in none of the {len(numbers)} XML files '
                f'that were looked at{hint}. Objects whose names are not classes are left out',
                logger='current',
                level=logging.WARNING,
            )


def check_labels(dataset: BaseDataset, heads: list[ClassHead], owner: str) -> None:
    """Checks that the labels of a few of mmpretrain's samples are classes.

    Args:
        dataset: The data set.
        heads: The heads of the model.
        owner: The owner of the data set, such as 'train_dataloader'.

    Raises:
        UserError: The message names the first label that is not a class.
    """
    classes = classes_of(dataset)
    limits = [len(classes)] if classes else [head.num_classes for head in heads]
    for number in spread(len(dataset), _LOOKED_AT) if limits else []:
        sample = dataset.get_data_info(number)
        labels = sample.get('gt_label')
        for label in labels if isinstance(labels, list | tuple) else [labels]:
            if isinstance(label, Integral) and not 0 <= int(label) < min(limits):
                raise UserError(
                    f'{sample.get("img_path", f"sample {number}")} ({owner}, {type(dataset).__name__}) has the label '
                    f'{label}: there are {min(limits)} classes, 0 to {min(limits) - 1}'
                    f'{"" if classes else f" (num_classes of model.{heads[0].name})"}'
                )
