"""Compares the parts of a run before its first step."""

from traceback import walk_tb

from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from mmgroupnet.checkpoints.read import first_meta, is_local, read_checkpoint
from mmgroupnet.engine.checks.annotation_files import AnnotationFiles, watch_annotation_files
from mmgroupnet.engine.checks.classes import (
    check_categories,
    check_folders,
    check_head,
    check_same_labels,
    classes_of,
    has_own_classes,
)
from mmgroupnet.engine.checks.evaluators import check_metric, names_by_label
from mmgroupnet.engine.checks.heads import class_heads, has_text_classes, ignored_ids
from mmgroupnet.engine.checks.masks import check_masks
from mmgroupnet.engine.checks.samples import check_files, check_labels, check_xml_names, innermost
from mmgroupnet.engine.data import few_names
from mmgroupnet.errors import UserError

# Methods of mmseg's and mmpretrain's data sets that compare classes with folders, palettes or other classes. The user
# can fix their errors.
_COMPARE_DATA = ('get_label_map', '_update_palette', '_find_samples')


def _refuse_empty(dataset: BaseDataset, owner: str) -> None:
    """Raises an error for an empty data set, with the places that were searched."""
    source = getattr(dataset, 'ann_file', None)
    if source:
        classes = classes_of(dataset)
        rule = getattr(dataset, 'filter_cfg', None)
        details = f'{source}{f" after filter_cfg={dict(rule)}" if rule else ""}. Check that it has samples'
        details += f' with annotations of the classes {few_names(classes)}' if classes else ''
    else:
        details = f'{getattr(dataset, "data_prefix", "its folders")}. Check the folders'
        suffix = getattr(dataset, 'img_suffix', None)
        details += f' and the ending of the pictures, img_suffix={suffix!r}' if suffix else ''
    raise UserError(f'the data set of {owner} ({type(dataset).__name__}) is empty: nothing is left of {details}')


def _build(runner: Runner, stage: str, files: AnnotationFiles) -> None:
    """Builds the loop of a stage with its data set and evaluator, like the run, with a clear error if the data is
    wrong."""
    try:
        getattr(runner, f'{stage}_loop')
    except (KeyError, AssertionError, ValueError, RuntimeError) as error:
        files.explain(error)
        for frame, _ in walk_tb(error.__traceback__):
            place, dataset = frame.f_code.co_name, frame.f_locals.get('self')
            # numpy cannot concatenate the samples of an empty set.
            if place == '_serialize_data' and not getattr(dataset, 'data_list', True):
                _refuse_empty(dataset, f'{stage}_dataloader')
            if place in _COMPARE_DATA:
                raise UserError(f'the data set of {stage}_dataloader: {error}') from error
        raise


def _check_dataset(dataset: BaseDataset, files: AnnotationFiles, owner: str) -> None:
    """Checks one data set: its classes against its files, and a few of its samples."""
    if not len(dataset):
        _refuse_empty(dataset, owner)
    classes = classes_of(dataset)
    file = files.at(getattr(dataset, 'ann_file', None))
    if file is not None and hasattr(dataset, 'cat_ids'):
        file.check_ids()
        file.check_category_ids()
        if classes:
            # Class lists of special data sets, such as iSAID, may spell a name differently than the file.
            strict = type(dataset).__name__ == 'CocoDataset' or not has_own_classes(dataset)
            check_categories(classes, file, names_by_label(dataset, files) or [], owner, strict)
    check_folders(dataset, owner)
    check_files(dataset, owner)
    check_xml_names(dataset, owner)


def _labels_of_checkpoint(runner: Runner) -> tuple[list[str], str] | None:
    """The classes of the training in a test's checkpoint, and their source; None if the checkpoint has none."""
    source = runner._load_from
    if not source or not is_local(source):
        return None
    meta = read_checkpoint(source).get('meta')
    classes = first_meta(meta.get('dataset_meta')).get('classes') if isinstance(meta, dict) else None
    return (list(classes), f'checkpoint {source}') if isinstance(classes, list | tuple) else None


def check_built_parts(runner: Runner, stages: list[str]) -> None:
    """Compares the data sets, heads and evaluators of a run, and checks a few samples.

    It builds the loops that the run would build next, in the same way in all processes, and draws no random numbers.

    Args:
        runner: The run.
        stages: The loops that will run: 'train', 'val', 'test'. Those that the run lacks are skipped.

    Raises:
        UserError: If the parts disagree; the message names both and what to do.
    """
    stages = [stage for stage in stages if getattr(runner, f'_{stage}_loop', None) is not None]
    with watch_annotation_files() as files:
        for stage in stages:
            _build(runner, stage, files)
    model = runner.model
    heads = list(class_heads(model))
    first = None if has_text_classes(model) else _labels_of_checkpoint(runner) if stages == ['test'] else None
    for stage in stages:
        owner = f'{stage}_dataloader'
        datasets = list(innermost(getattr(runner, owner).dataset))
        for dataset in datasets:
            for head in heads:
                check_head(head, dataset, owner)
            if isinstance(dataset, BaseDataset):
                _check_dataset(dataset, files, owner)
                check_masks(dataset, owner, ignored_ids(model))
                check_labels(dataset, heads, owner)
        evaluator = getattr(runner, f'{stage}_evaluator', None)
        metrics = getattr(evaluator, 'metrics', ())
        parts = getattr(getattr(runner, owner).dataset, 'datasets', ())
        # Each metric of mmdet's MultiDatasetsEvaluator evaluates one part of a ConcatDataset.
        has_parts = hasattr(evaluator, 'dataset_prefixes') and len(parts) == len(metrics)
        for index, metric in enumerate(metrics):
            check_metric(metric, files, list(innermost(parts[index])) if has_parts else datasets, owner)
        names = names_by_label(datasets[0], files)
        if names and first:
            check_same_labels(*first, names, owner)
        elif names and not has_text_classes(model):
            first = names, owner
        # Only data sets of one type: masks of another type may be coded differently.
        zero = type(datasets[0]), getattr(datasets[0], 'reduce_zero_label', None)
        if stage == stages[0]:
            reduces_zero = zero
        elif zero[0] is reduces_zero[0] and zero[1] != reduces_zero[1]:
            raise UserError(
                f'labels are positions: {owner} has reduce_zero_label={zero[1]}, {stages[0]}_dataloader '
                f'{reduces_zero[1]}. Give both the same'
            )
