"""Compares evaluators that read their own annotation file with the data set that they evaluate."""

import logging
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmgroupnet.engine.checks.annotation_files import AnnotationFile, AnnotationFiles, same_file
from mmgroupnet.engine.checks.classes import check_categories, classes_of
from mmgroupnet.engine.checks.samples import spread
from mmgroupnet.errors import UserError

# Metrics that number labels in the order of their file.
_KNOWN = ('CocoMetric', 'CocoPanopticMetric')
# Number of pictures whose names are compared.
_LOOKED_AT = 256


def _check_pictures(metric: BaseMetric, file: AnnotationFile, dataset: BaseDataset, owner: str) -> None:
    """Checks that an evaluator's file has the same pictures as the data set: objects in additional ones count as
    missed."""
    known = metric._coco_api.imgs
    evaluator = owner.replace('dataloader', 'evaluator')
    if same_file(file.path, dataset.ann_file):
        if len(dataset) < len(known):
            print_log(
                f'{evaluator} counts all objects in the {len(known)} pictures of {file.path}, the data set of {owner} '
                f'has {len(dataset)} of them: those in the others count as missed',
                logger='current',
                level=logging.WARNING,
            )
        return
    both = f'{evaluator} reads {file.path}, the data set of {owner} {dataset.ann_file}'
    ids = [dataset.get_data_info(number).get('img_id') for number in range(len(dataset))]
    unknown = [found for found in ids if found not in known]
    if unknown:
        raise UserError(
            f'{both}: {len(unknown)} of its {len(ids)} pictures are not in the file of the evaluator, the first has '
            f'the id {unknown[0]}. Give both the same ann_file'
        )
    for number in spread(len(dataset), _LOOKED_AT):
        sample = dataset.get_data_info(number)
        there = known[sample['img_id']].get('file_name')
        if there and Path(there).stem != Path(sample['img_path']).stem:
            raise UserError(
                f'{both}: the picture with the id {sample["img_id"]} is {there} for the evaluator and '
                f'{sample["img_path"]} in the data set. Give both the same ann_file'
            )
    if len(set(ids)) < len(known):
        raise UserError(
            f'{both}: the evaluator has {len(known)} pictures, the data set {len(ids)}, and objects in the others '
            'would count as missed. Give both the same ann_file'
        )


def check_metric(metric: BaseMetric, files: AnnotationFiles, datasets: list[BaseDataset], owner: str) -> None:
    """Compares a metric that reads a COCO file with the data set; other metrics are not checked.

    Args:
        metric: The metric.
        files: The loaded files.
        datasets: The data sets inside the loader's wrappers.
        owner: The loader, such as 'val_dataloader'.

    Raises:
        UserError: If the file has other pictures, classes or orders of classes, lacks fields that the metric reads, or
            has ids that it drops.
    """
    file = files.of(getattr(metric, '_coco_api', None))
    if file is None or not {base.__name__ for base in type(metric).__mro__} & set(_KNOWN):
        return
    evaluator = owner.replace('dataloader', 'evaluator')
    classes = classes_of(datasets[0])
    if len(datasets) == 1 and hasattr(datasets[0], 'cat_ids') and not file.is_video:
        _check_pictures(metric, file, datasets[0], owner)
    file.check_ids()
    if classes:
        # In the metric's order of labels.
        read = [file.names[number] for number in metric._coco_api.getCatIds(catNms=classes)]
        if read != names_by_label(datasets[0], files):
            check_categories(classes, file, read, evaluator)
    if file.is_panoptic or getattr(metric, 'format_only', False):
        return
    if not file.num_annotations:
        raise UserError(
            f'annotation file {file.path} ({evaluator}) has no annotations: every precision would be -1 (nothing to '
            'find); give the evaluator a file with annotations'
        )
    wanted = ['id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd']
    if 'segm' in getattr(metric, 'metrics', ()):
        wanted.append('segmentation')
    file.check_fields(*(('annotations', field) for field in wanted), reader=type(metric).__name__)
    if file.has_annotation_0:
        raise UserError(
            f'annotation file {file.path} ({evaluator}) has an annotation with the id 0, which pycocotools counts as '
            'missed even where it is found: number annotations from 1'
        )


def names_by_label(dataset: BaseDataset, files: AnnotationFiles) -> list[Any] | None:
    """The meaning of the labels of a data set: the names in its annotation file (None for a category without a name)
    or, without a file, its classes.

    Args:
        dataset: The data set.
        files: The loaded files.
    """
    file = files.at(getattr(dataset, 'ann_file', None))
    if file is not None and hasattr(dataset, 'cat_ids'):
        return [file.names.get(number) for number in dataset.cat_ids]
    return classes_of(dataset)
