"""Inspects COCO annotation files while data sets and evaluators load them; their content is freed afterwards."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from mmengine.logging import print_log

from mmgroupnet.errors import UserError

# Fields that mmdet's data sets read from every entry, and those that evaluation reads; both end in a KeyError without.
_READ = dict(
    images=('id', 'file_name', 'height', 'width'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
    categories=('id', 'name'),
)
_EVALUATED = dict(annotations=('iscrowd', 'segmentation'))
_REMEDIES = dict(
    area=': width times height of the box where there is no mask',
    iscrowd=': 0, and 1 for boxes around a crowd',
)


def _repeated(ids: Iterable) -> object | None:
    """The first id that occurs twice, or None."""
    counts = Counter(ids)
    return next((found for found, count in counts.items() if count > 1), None)


class AnnotationFile:
    """The facts about an annotation file that the checks need.

    Args:
        path: The file.
        content: Its content.
    """

    def __init__(self, path: str, content: Mapping) -> None:
        self.path = path
        # The entries are not kept: they may take half a gigabyte.
        entries = {part: [entry for entry in content.get(part) or [] if isinstance(entry, dict)] for part in _READ}
        annotations = entries['annotations']
        #: Whether annotations hold the segments of whole pictures; they have other fields.
        self.is_panoptic = any('segments_info' in annotation for annotation in annotations[:1])
        self.is_video = 'videos' in content
        self.names: dict[Any, Any] = {category.get('id'): category.get('name') for category in entries['categories']}
        self.num_pictures, self.num_annotations = len(entries['images']), len(annotations)
        self.lacking = {
            (part, field): sum(field not in entry for entry in entries[part])
            for part in _READ
            for field in (*_READ[part], *_EVALUATED.get(part, ()))
        }
        labels = {annotation.get('category_id') for annotation in annotations}
        #: Categories of annotations that are not in the list, and those in the list without an annotation.
        self.unlisted, self.unused = sorted(labels - set(self.names), key=str), set(self.names) - labels
        #: Whether annotations start counting at another number than the list, or do not match it at all.
        self.is_numbered_anew = labels.isdisjoint(self.names) or any(
            all(isinstance(label, int) and label + shift in self.names for label in labels) for shift in (-1, 1)
        )
        self.has_annotation_0 = any(annotation.get('id') == 0 for annotation in annotations)
        self.repeated = {part: _repeated(entry.get('id') for entry in entries[part]) for part in _READ}

    def check_fields(self, *fields: tuple[str, str], reader: str) -> None:
        """Checks that all entries have the required fields.

        Raises:
            UserError: The message names the first missing field.
        """
        for part, field in fields:
            count = self.lacking.get((part, field), 0)
            if count:
                total = dict(images=self.num_pictures, annotations=self.num_annotations).get(part, len(self.names))
                raise UserError(
                    f'annotation file {self.path}: {count} of its {total} {part} have no {field!r}, which {reader} '
                    f'reads; add it{_REMEDIES.get(field, "")}'
                )

    def check_ids(self) -> None:
        """Checks that no two pictures, annotations or categories share an id: readers would see only one of them.

        Raises:
            UserError: The message names the id.
        """
        for part, found in self.repeated.items():
            if found is not None and not self.lacking[part, 'id'] and not (self.is_panoptic and part == 'annotations'):
                raise UserError(
                    f'annotation file {self.path}: two of its {part} have the id {found}, and only one of them would '
                    'be seen; renumber them'
                )

    def check_category_ids(self) -> None:
        """Checks that the categories of annotations are in the file's list; readers silently drop all others.

        If listed categories have no annotations but unlisted ones have some, it is a warning: the list may contain only
        some of the categories.

        Raises:
            UserError: If the list cannot belong to the annotations, for example if one starts at 0 and the other at 1.
        """
        if self.unlisted and self.unused and not self.is_panoptic and not self.lacking['annotations', 'category_id']:
            message = (
                f'annotation file {self.path}: there are annotations of the category ids '
                f'{", ".join(map(str, self.unlisted[:10]))}, which its list of categories lacks, and none of '
                f'{", ".join(repr(self.names[number]) for number in list(self.unused)[:10])}. They would be left out: '
                'give annotations and categories the same ids'
            )
            if self.is_numbered_anew:
                raise UserError(message)
            print_log(message, logger='current', level=logging.WARNING)


class AnnotationFiles:
    """The annotation files that were loaded."""

    def __init__(self) -> None:
        self._files: list[AnnotationFile] = []
        self._by_reader: WeakKeyDictionary[object, AnnotationFile] = WeakKeyDictionary()

    def add(self, reader: object, path: str, content: Mapping) -> None:
        """Records the facts about a file.

        Args:
            reader: The COCO object that has loaded it.
            path: The file.
            content: Its content.
        """
        self._files.append(AnnotationFile(path, content))
        self._by_reader[reader] = self._files[-1]

    def at(self, path: str | None) -> AnnotationFile | None:
        """The facts about the file of a path, if it was loaded."""
        return next((file for file in reversed(self._files) if file.path == path), None)

    def of(self, reader: object) -> AnnotationFile | None:
        """The facts about the file that a COCO object has loaded."""
        return self._by_reader.get(reader) if reader is not None else None

    def explain(self, error: Exception) -> None:
        """Raises a clear error for the file at which a reader has failed, if the cause is known.

        Args:
            error: The reader's exception.

        Raises:
            UserError: The message names the file and what it lacks.
        """
        if not self._files:
            return
        file = self._files[-1]
        if isinstance(error, KeyError):
            file.check_fields(*((part, field) for part in _READ for field in _READ[part] if field == error.args[0]),
                              reader='its data set')  # fmt: skip
            if error.args[0] in _READ:
                raise UserError(f'annotation file {file.path} has no list {error.args[0]!r}') from error
        elif isinstance(error, AssertionError):
            file.check_ids()


@contextmanager
def watch_annotation_files() -> Iterator[AnnotationFiles]:
    """A context that records the files that pycocotools loads, and names a file that is not JSON.

    It inspects the content while it is in memory: reading half a gigabyte a second time takes ten seconds.

    Raises:
        UserError: If a file cannot be read as COCO's.
    """
    files = AnnotationFiles()
    if find_spec('pycocotools') is None:
        yield files
        return
    from pycocotools.coco import COCO

    load = COCO.__init__

    def load_and_keep(self: COCO, annotation_file: str | None = None) -> None:
        try:
            load(self, annotation_file)
        except json.JSONDecodeError as error:
            raise UserError(f'annotation file {annotation_file} is no valid JSON: {error}') from error
        finally:
            content = getattr(self, 'dataset', None)  # It exists even if building the index failed.
            if annotation_file is not None and isinstance(content, dict) and content:
                files.add(self, str(annotation_file), content)

    COCO.__init__ = load_and_keep
    try:
        yield files
    finally:
        COCO.__init__ = load


def same_file(first: str, second: str) -> bool:
    """Whether two paths lead to the same file."""
    return Path(first).resolve() == Path(second).resolve()
