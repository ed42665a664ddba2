"""Answers as text, as JSON, and as the predictions file that ``mmgroupnet test`` reads."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mmgroupnet_runtime.answers import Classification, Detections, Segmentation
from mmgroupnet_runtime.model import Model

Answer = Detections | Segmentation | Classification
_NAMED = 5  # classes in a line of text


def _class_name(classes: list[str] | None, label: int) -> str:
    """Returns the name of a class, or 'class 3' if the model has no name for it."""
    return classes[label] if classes is not None and label < len(classes) else f'class {label}'


def entries(answer: Answer, classes: list[str] | None) -> list[dict]:
    """Lists the content of an answer with class names and rounded numbers.

    Args:
        answer: The answer for one picture.
        classes: Names of the classes, or None.

    Returns:
        The detections with their score and box, or the classes with their share of the picture or with their score, in
        descending order.
    """
    if isinstance(answer, Segmentation):
        shares = np.bincount(answer.classes.ravel()) / answer.classes.size
        seen = [label for label in _descending(shares) if shares[label]]
        found: list[dict[str, Any]] = [dict(label=label, share=round(float(shares[label]), 4)) for label in seen]
    elif isinstance(answer, Detections):
        found = [
            dict(label=int(label), score=round(float(score), 4), box=[round(float(edge), 2) for edge in box])
            for box, label, score in zip(*answer, strict=True)
        ]
    else:
        scores = answer.scores
        found = [dict(label=label, score=round(float(scores[label]), 4)) for label in _descending(scores)]
    return [{'class': _class_name(classes, entry['label']), **entry} for entry in found]


def _descending(values: np.ndarray) -> list[int]:
    return np.argsort(-values, kind='stable').tolist()


def summary(answer: Answer, classes: list[str] | None, score_thr: float) -> str:
    """Describes an answer in a few words.

    Args:
        answer: The answer for one picture.
        classes: Names of the classes, or None.
        score_thr: Detections below this score are left out.

    Returns:
        Such as '2 detections: car 0.98, person 0.55'.
    """
    found = entries(answer, classes)
    if isinstance(answer, Detections):
        found = [entry for entry in found if entry['score'] >= score_thr]
    named = ', '.join(map(entry_text, found[:_NAMED])) + ', ...' * (len(found) > _NAMED)
    if isinstance(answer, Detections):
        return f'{len(found)} detection{"s" * (len(found) != 1)}' + f': {named}' * bool(found)
    return named


def entry_text(entry: dict) -> str:
    """Returns an entry as 'car 0.98' or 'road 54.1%'."""
    return f'{entry["class"]} {entry["share"]:.1%}' if 'share' in entry else f'{entry["class"]} {entry["score"]:.2f}'


class PredictionsFile:
    """Writes the predictions file picture by picture, so that a device need not hold all answers in memory.

    Args:
        path: The .npz file. It exists once the ``with`` statement has ended without an error; until then, ``.part`` is
            appended to its name.
        model: The model whose answers it holds.
    """

    def __init__(self, path: str | Path, model: Model) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(self._path.name + '.part')
        self._names: list[str] = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._archive = zipfile.ZipFile(self._part, 'w', zipfile.ZIP_DEFLATED)
        self._write('metadata', np.array(json.dumps(model.metadata)))

    def __enter__(self) -> PredictionsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self._write('names', np.array(self._names))
        self._archive.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            os.remove(self._part)

    def add(self, name: str, answer: Answer) -> None:
        """Writes the answer for a picture, with the name of its file."""
        for field, values in answer._asdict().items():
            if values is not None:
                self._write(f'{field}_{len(self._names)}', values)
        self._names.append(name)

    def _write(self, key: str, values: np.ndarray) -> None:
        with self._archive.open(f'{key}.npy', 'w', force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
