"""Checks that the data of a config exists, before a model is built."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmgroupnet.engine.arguments import accepted_arguments
from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import type_name

# Advice if the folder of a generated data set is missing.
_REMEDIES = {Path('data/digits'): 'Make it: python -m mmgroupnet digits'}


def innermost_datasets(dataset: dict) -> Iterator[dict]:
    """The datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from innermost_datasets(inner)
    else:
        yield dataset


def _expected_paths(dataset: Mapping) -> Iterator[tuple[str, Path]]:
    """The annotation file and the folders on this disk that a dataset's config names and that are read, each with what
    it is."""
    root = Path(dataset.get('data_root') or '')
    ann_file, prefixes = dataset.get('ann_file'), dataset.get('data_prefix') or {}
    if isinstance(ann_file, str) and ann_file and '://' not in ann_file:
        yield 'annotation file', root / ann_file
    for key, prefix in prefixes.items() if isinstance(prefixes, Mapping) else [('', prefixes)]:
        if isinstance(prefix, str) and prefix and '://' not in prefix and not _is_idle(key, dataset):
            yield 'image folder', root / prefix


def _is_idle(key: str, dataset: Mapping) -> bool:
    """Whether the folder is one of masks and the pipeline loads none, as in a test without annotations."""
    transforms = dataset.get('pipeline')
    if key not in ('seg_map_path', 'seg') or not transforms:
        return False
    return not any('Load' in type_name(part) and 'Annotation' in type_name(part) for part in transforms)


def _pictures_are_elsewhere(dataset: Mapping) -> bool:
    """Whether the pipeline reads pictures from its own backend, such as an LMDB beside annotations on the disk."""
    transforms = [part for part in dataset.get('pipeline') or () if isinstance(part, Mapping)]
    return any(part.get('backend_args') or part.get('file_client_args') for part in transforms)


def _check_classes(dataset: Mapping, name: str) -> None:
    """Checks that classes are a list of different names. A string is a file of names, or a comma is missing."""
    metainfo = dataset.get('metainfo')
    for classes in (metainfo.get('classes') if isinstance(metainfo, Mapping) else None, dataset.get('classes')):
        if isinstance(classes, str) and not Path(classes).expanduser().is_file():
            raise UserError(
                f'classes={classes!r} ({name}) is a string, and no file of names: a single class is written with a '
                f'comma, classes=({classes!r},)'
            )
        if isinstance(classes, list | tuple):
            twice = next((one for one in classes if classes.count(one) > 1), None)
            if twice is not None:
                raise UserError(f'classes of the dataset ({name}): {twice!r} is there twice, and has one label')


def _check_dataset(dataset: Mapping, name: str, scope: str | None) -> None:
    _check_classes(dataset, name)
    root = str(dataset.get('data_root') or '')
    if '://' in root or dataset.get('backend_args') or dataset.get('file_client_args'):
        return  # Not on this disk.
    part = resolve_type(dataset['type'], scope)
    if part is not None and 'download' in (accepted_arguments(part) or ()):
        return  # It downloads itself.
    expected = list(_expected_paths(dataset))
    listed = ', '.join(str(path) for _, path in expected)
    if root and not Path(root).is_dir():
        folder = Path(root)
        state = f'is a link to {folder.readlink()}, which does not exist' if folder.is_symlink() else 'does not exist'
        content = f'Expected in it: {listed}. ' if expected else ''
        remedy = _REMEDIES.get(folder, f'Link your copy: ln -sn /path/to/{folder.name} {folder}')
        raise UserError(f'data folder {folder} ({name}) {state}. {content}{remedy}')
    for kind, path in expected:
        if not path.exists():
            if kind != 'annotation file' and _pictures_are_elsewhere(dataset):
                continue
            raise UserError(f'{kind} {path} ({name}) does not exist. Expected: {listed}')
        if path.is_file() and not path.stat().st_size:
            raise UserError(f'{kind} {path} ({name}) is empty')


def few_names(names: Sequence[str]) -> str:
    """The first ten names, for an error."""
    return ', '.join(repr(name) for name in names[:10]) + (', ...' if len(names) > 10 else '')


def _check_evaluator(evaluator: object, name: str) -> None:
    """Checks that the annotation files of an evaluator's metrics exist."""
    if isinstance(evaluator, list | tuple):
        for metric in evaluator:
            _check_evaluator(metric, name)
    elif isinstance(evaluator, Mapping):
        _check_evaluator(evaluator.get('metrics'), name)
        path = evaluator.get('ann_file')
        if isinstance(path, str) and path and '://' not in path and not evaluator.get('backend_args'):
            if not Path(path).expanduser().is_file():
                raise UserError(
                    f'annotation file {path} ({name}, {evaluator.get("type")}) does not exist: give the evaluator the '
                    'ann_file of its data set, with data_root in front'
                )


def check_data(cfg: Config, loaders: list[str]) -> None:
    """Checks that folders and annotation files exist, also those of evaluators, and that classes are a list.

    The content of files is compared when the data sets are built, see :mod:`mmgroupnet.engine.checks`.

    Args:
        cfg: The config.
        loaders: The data loaders that will be used: 'train_dataloader', 'val_dataloader', 'test_dataloader'. Those that
            the config lacks are skipped.

    Raises:
        UserError: The message names the missing file, the expected files, and how to link them.
    """
    for name in loaders:
        if cfg.get(name):
            for dataset in innermost_datasets(cfg[name]['dataset']):
                _check_dataset(dataset, name, cfg.get('default_scope'))
            evaluator = name.replace('dataloader', 'evaluator')
            _check_evaluator(cfg.get(evaluator), evaluator)
