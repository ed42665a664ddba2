"""Checks the meaning of labels. Labels are numbers, and config, annotation files, head and evaluator each define their
meaning separately."""

import logging
from collections.abc import Sequence

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmgroupnet.engine.checks.annotation_files import AnnotationFile
from mmgroupnet.engine.checks.heads import ClassHead
from mmgroupnet.engine.data import few_names
from mmgroupnet.errors import UserError, nearest


def classes_of(dataset: BaseDataset) -> list[str] | None:
    """The names of a data set's classes, or None if it has none."""
    metainfo = getattr(dataset, 'metainfo', None) or {}
    classes = metainfo.get('classes')
    return list(classes) if isinstance(classes, list | tuple) else None


def has_own_classes(dataset: BaseDataset) -> bool:
    """Whether a data set's classes come from its type, not from the config or its files."""
    return classes_of(dataset) == list(getattr(type(dataset), 'METAINFO', {}).get('classes') or ())


def disagreement(first: Sequence[str], second: Sequence[str]) -> tuple[int, int] | None:
    """Finds a name with different positions in two lists; a list may hold it twice, as ImageNet's does.

    Returns:
        Its two positions, or None.
    """
    places = {name: position for position, name in enumerate(second)}
    for position, name in enumerate(first):
        is_same = position < len(second) and second[position] == name
        if not is_same and name in places:
            return position, places[name]
    return None


def check_categories(
    classes: list[str], file: AnnotationFile, read: list[str], owner: str, strict: bool = True
) -> None:
    """Compares the classes of a config with the categories of an annotation file.

    mmdet numbers labels in the order of the *file*, and leaves out a class that the file lacks, so all later classes
    move up. If there is no later class, training works and this is a warning; an evaluation would see a label without a
    category.

    Args:
        classes: The classes of the config.
        file: The file.
        read: Its categories among the classes, in label order.
        owner: The reader of the file, such as 'train_dataloader'.
        strict: Whether a disagreement is an error; otherwise a warning. Default: True.

    Raises:
        UserError: The message names the class that the file lacks and the most similar one that it has, or the two
            meanings of a label.
    """
    if read == classes:
        return
    names = list(file.names.values())
    lacking = [name for name in classes if name not in names]
    if lacking:
        free = [name for name in names if name not in classes]
        if owner == 'train_dataloader' and read and not free and read == classes[: len(read)]:
            print_log(
                f'annotation file {file.path} ({owner}) has no category {few_names(lacking)}: no example of it is '
                'learnt from this file',
                logger='current',
                level=logging.WARNING,
            )
            return
        message = (
            f'annotation file {file.path} ({owner}) has no category '
            f'{", ".join(f"{name!r}{nearest(name, free)}" for name in lacking[:10])}'
            f'{", ..." if len(lacking) > 10 else ""}: it has {few_names(names)}, the classes of the config are '
            f'{few_names(classes)}. Labels are positions, later ones would move up and mean other classes. Give the '
            'dataset the names of the file: metainfo=dict(classes=(...))'
        )
    else:
        label = next(number for number, name in enumerate(read) if classes[number : number + 1] != [name])
        expected = repr(classes[label]) if label < len(classes) else f'nothing (there are {len(classes)} classes)'
        message = (
            f'labels are positions: label {label} is {read[label]!r} in the annotation file {file.path} ({owner}) and '
            f'{expected} in the classes of the config. Give the classes in the order of the file, each once: '
            f'metainfo=dict(classes=({few_names(list(dict.fromkeys(read)))}))'
        )
    if strict:
        raise UserError(message)
    print_log(message, logger='current', level=logging.WARNING)


def check_same_labels(first: list[str], first_owner: str, second: list[str], second_owner: str) -> None:
    """Checks that a label means the same in two places.

    Args:
        first: Names by label.
        first_owner: Their source.
        second: Names by label in the other place.
        second_owner: Their source.

    Raises:
        UserError: If a class has two labels. Names that occur in only one place are a warning.
    """
    found = disagreement(first, second)
    if found is not None:
        here, there = found
        raise UserError(
            f'labels are positions: {first[here]!r} is label {here} in {first_owner} and {there} in {second_owner}. '
            f'There are {few_names(first)} in {first_owner}, {few_names(second)} in {second_owner}; give both the same '
            'classes in the same order'
        )
    if first_owner.startswith('checkpoint'):
        return  # Published checkpoints often have the plain names of ImageNet's folders.
    differing = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    if differing:
        print_log(
            f'{first_owner} and {second_owner} have different names for a label: {differing[0][0]!r} and '
            f'{differing[0][1]!r}. They are treated as the same class',
            logger='current',
            level=logging.WARNING,
        )


def check_head(head: ClassHead, dataset: BaseDataset, owner: str) -> None:
    """Checks that a head has as many classes as a data set.

    Args:
        head: The head.
        dataset: A data set; one without classes is not checked.
        owner: The owner of the data set, such as 'train_dataloader'.

    Raises:
        UserError: The message names both numbers.
    """
    classes = classes_of(dataset)
    if classes is None:
        return
    if head.only_things:
        classes = list(dataset.metainfo.get('thing_classes') or classes)
    if head.num_classes == len(classes):
        return
    message = (
        f'model.{head.name} has num_classes={head.num_classes}, the data set of {owner} ({type(dataset).__name__}) has '
        f'{len(classes)} classes: {few_names(classes)}. Set num_classes to {len(classes)}, or give the dataset its '
        'classes (metainfo)'
    )
    # Networks for ImageNet-21k are tested on ImageNet-1k.
    is_classifier = head.name in ('head', 'backbone', 'data_preprocessor')
    # MOTChallengeDataset has 13 classes, of which trackers find one.
    kinds = {kind.__name__ for kind in type(dataset).__mro__}
    is_tracker = 'BaseVideoDataset' in kinds and not owner.startswith('train') and head.num_classes < len(classes)
    if (is_classifier and head.num_classes > len(classes) or is_tracker) and has_own_classes(dataset):
        print_log(message, logger='current', level=logging.WARNING)
    else:
        raise UserError(message)


def check_folders(dataset: BaseDataset, owner: str) -> None:
    """Checks the classes of mmpretrain's data sets whose folders are the classes: these are numbered alphabetically,
    whatever the order in the config.

    Args:
        dataset: The data set.
        owner: The owner of the data set.

    Raises:
        UserError: If the config gives a class another number than its folder.
    """
    folders = getattr(dataset, 'folder_to_idx', None)
    classes = classes_of(dataset)
    if not isinstance(folders, dict) or classes is None:
        return
    found = disagreement(sorted(folders, key=lambda name: folders[name]), classes)
    if found is not None:
        folder, position = found
        name = classes[position]
        raise UserError(
            f'labels are positions: the folder {name!r} of {owner} is label {folder}, in alphabetical order, '
            f'and {name!r} is label {position} in the classes of the config. Give the classes in the order of the '
            f'folders: {few_names(sorted(folders))}'
        )
