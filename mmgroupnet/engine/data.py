"""Checks that the data of a config is there, before a model is built."""

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmgroupnet.engine.configs import accepted_arguments, resolve_type
from mmgroupnet.errors import UserError

# Bytes; that of LVIS with its 1203 classes takes half a megabyte.
_LONGEST_CATEGORIES = 2**24


def innermost_datasets(dataset: Mapping) -> Iterator[Mapping]:
    """The datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from innermost_datasets(inner)
    else:
        yield dataset


def _expected_paths(dataset: Mapping) -> Iterator[Path]:
    """The annotation file and the folders that a dataset's config names."""
    root = Path(dataset.get('data_root') or '')
    if dataset.get('ann_file'):
        yield root / dataset['ann_file']
    prefixes = dataset.get('data_prefix') or {}
    for prefix in prefixes.values() if isinstance(prefixes, Mapping) else [prefixes]:
        if isinstance(prefix, str) and prefix:
            yield root / prefix


def _categories(ann_file: Path) -> list[str] | None:
    """Names of the categories in a COCO annotation file, or None where it has no such list.

    Only that list is parsed: the file may be half a gigabyte.
    """
    if not ann_file.stat().st_size:
        raise UserError(f'annotation file {ann_file} is empty')
    with ann_file.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', text):
            try:
                categories, _ = json.JSONDecoder().raw_decode(
                    text[match.end() : match.end() + _LONGEST_CATEGORIES].decode(errors='ignore')
                )
                return [category['name'] for category in categories]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'annotation file {ann_file}: its list of categories is not readable ({error})'
                ) from error
    return None


def _classes(dataset: Mapping, scope: str | None) -> list[str] | None:
    metainfo = dataset.get('metainfo')
    classes = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if classes is None:
        classes = getattr(resolve_type(dataset['type'], scope), 'METAINFO', {}).get('classes')
    return list(classes) if isinstance(classes, list | tuple) else None


def _check_dataset(dataset: Mapping, name: str, scope: str | None) -> None:
    root = str(dataset.get('data_root') or '')
    if '://' in root or dataset.get('backend_args') or dataset.get('file_client_args'):
        return  # Not on this disk.
    part = resolve_type(dataset['type'], scope)
    if part is not None and 'download' in (accepted_arguments(part) or ()):
        return  # Fetches itself.
    expected = list(_expected_paths(dataset))
    if root and not Path(root).is_dir():
        folder = Path(root)
        state = f'is a link to {folder.readlink()}, which does not exist' if folder.is_symlink() else 'does not exist'
        content = f'Expected in it: {", ".join(str(path) for path in expected)}. ' if expected else ''
        raise UserError(
            f'data folder {folder} ({name}) {state}. {content}'
            f'Link your copy: ln -sn /path/to/{folder.name} {folder}'
        )
    for path in expected:
        if not path.exists():
            kind = 'annotation file' if path == expected[0] and dataset.get('ann_file') else 'image folder'
            raise UserError(
                f'{kind} {path} ({name}) does not exist. Expected: {", ".join(str(path) for path in expected)}'
            )
    classes = _classes(dataset, scope)
    if classes and dataset.get('ann_file', '').endswith('.json'):
        categories = _categories(expected[0])
        if categories is not None and not set(categories) & set(classes):
            raise UserError(
                f'annotation file {expected[0]} ({name}) has none of the classes of the config: it has '
                f'{few_names(categories)}, the config {few_names(classes)}; give the dataset '
                'metainfo=dict(classes=(...))'
            )


def few_names(names: Sequence[str]) -> str:
    """Names for an error, the first ten."""
    return ', '.join(repr(name) for name in names[:10]) + (', ...' if len(names) > 10 else '')


def check_data(cfg: Config, loaders: list[str]) -> None:
    """Checks that folders and annotation files are there, and that COCO files have at least one of the classes.

    Args:
        cfg: The config.
        loaders: Which data loaders will be used: 'train_dataloader', 'val_dataloader', 'test_dataloader'. Those that
            the config lacks are skipped.

    Raises:
        UserError: Naming what is missing, what is expected, and how to link it.
    """
    for name in loaders:
        if cfg.get(name):
            for dataset in innermost_datasets(cfg[name]['dataset']):
                _check_dataset(dataset, name, cfg.get('default_scope'))
