"""Evaluates predictions that a device wrote like a checkpoint."""

import json
import logging
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmgroupnet.engine.data import few_names
from mmgroupnet.engine.exported_model import ExportedModel, set_class_map, set_class_scores, set_detections
from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS

# The arrays of each picture.
_ARRAYS = dict(detection=('boxes', 'labels', 'scores'), segmentation=('classes',), classification=('scores',), maps=())


def _open(file: str) -> tuple[np.lib.npyio.NpzFile, list[str], dict]:
    """The arrays of a file of predictions, which are loaded on access, the names of its pictures, and its metadata."""
    try:
        arrays = np.load(file)  # Without pickles, its default.
        names, metadata = arrays['names'].tolist(), json.loads(str(arrays['metadata']))
        missing = [
            f'{key}_{index}'
            for index in range(len(names))
            for key in _ARRAYS[metadata['task']]
            if f'{key}_{index}' not in arrays
        ]
        is_sound = not missing and {'classes', 'palette'} <= set(metadata)
    except Exception as error:  # Garbage makes the readers raise any type.
        raise UserError(
            f'{file} is damaged or not a file of predictions: mmgroupnet-run MODEL.onnx FOLDER --npz FILE writes one'
        ) from error
    if not is_sound:
        raise UserError(f'{file} lacks {few_names(missing) or "classes or palette"}: predict and write it again')
    return arrays, names, metadata


@MODELS.register_module()
class StoredPredictions(ExportedModel):
    """The .npz file of ``mmgroupnet-run MODEL.onnx FOLDER --npz FILE``, which replaces the model that was run.

    The pictures of the data set are matched by their file names.

    Args:
        file: The file.
        data_preprocessor: Ignored. Default: None.
        multi_label: As for :class:`ExportedModel`. Default: None.

    Raises:
        UserError: If the file is not such a file, or damaged.
    """

    def __init__(self, file: str, data_preprocessor: dict | None = None, multi_label: dict | None = None) -> None:
        arrays, names, metadata = _open(file)
        super().__init__(file, metadata, multi_label)
        self._arrays = arrays
        self._names = names
        self._indices = {name: index for index, name in enumerate(names)}

    def check_dataset(self, dataset: BaseDataset) -> None:
        """Checks the classes, and that the file has all pictures of a data set. Additional pictures are logged.

        Args:
            dataset: The test data.

        Raises:
            UserError: If classes differ, pictures are missing, or two have the same name.
        """
        super().check_dataset(dataset)
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        if not all('img_path' in info for info in infos):
            raise UserError(f'{self.file} is matched by file names, but the pictures of the test data are not files')
        expected = [Path(info['img_path']).name for info in infos]
        for where, names in (('the test data', expected), (self.file, self._names)):
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise UserError(
                    f'{where} has several pictures named {few_names(repeated)} (such names: {len(repeated)}): pictures '
                    'are matched by the names of their files, without folders'
                )
        missing = sorted(set(expected) - set(self._names))
        surplus = sorted(set(self._names) - set(expected))
        others = f'predictions for {len(surplus)} others ({few_names(surplus)})' if surplus else ''
        if missing:
            raise UserError(
                f'{self.file} has no predictions for {len(missing)} of the {len(expected)} pictures of the test data '
                f'({few_names(missing)})' + (f', but {others}' if others else '') + ': run the model on all of them'
            )
        if others:
            print_log(
                f'{self.file} has the {len(expected)} pictures of the test data; its {others} are left out',
                logger='current',
                level=logging.WARNING,
            )

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[BaseDataElement], mode: str = 'predict'
    ) -> list[BaseDataElement]:
        """Looks up the predictions of a batch.

        Args:
            inputs: Pictures, not used.
            data_samples: Changed in place.
            mode: Only ``'predict'``. Default: ``'predict'``.

        Returns:
            The data samples, with predictions.

        Raises:
            UserError: If predictions are damaged, or belong to a picture of another size.
        """
        for sample in data_samples:
            if 'img_path' not in sample:
                raise UserError("the test pipeline leaves no 'img_path': give it among the meta_keys of its last step")
            name = Path(sample.img_path).name
            if self.metadata['task'] == 'detection':
                self._set_detections(sample, name)
            elif self.metadata['task'] == 'segmentation':
                self._set_class_map(sample, name)
            else:
                set_class_scores(sample, self._read(name, 'scores', (self._num_classes,)), self.multi_label)
        return data_samples

    @property
    def _num_classes(self) -> int | None:
        classes = self.metadata['classes']
        return None if classes is None else len(classes)

    def _read(self, name: str, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The array of a picture; None in the shape means any number."""
        key = f'{key}_{self._indices[name]}'
        try:
            array = self._arrays[key]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f'{self.file}: {key}, of {name}, is damaged: copy the file again') from error
        fits = array.ndim == len(shape) and all(
            wanted in (None, given) for wanted, given in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ', '.join('n' if size is None else str(size) for size in shape)
            raise UserError(f'{self.file}: {key}, of {name}, has the shape {array.shape}, not ({wanted})')
        return array

    def _check_labels(self, labels: np.ndarray, name: str) -> None:
        if self._num_classes is not None and labels.size and not 0 <= labels.min() <= labels.max() < self._num_classes:
            raise UserError(
                f'{self.file}: predictions for {name} have labels from {labels.min()} to {labels.max()}, its classes '
                f'are 0 to {self._num_classes - 1}'
            )

    def _set_detections(self, sample: BaseDataElement, name: str) -> None:
        boxes = self._read(name, 'boxes', (None, 4))
        labels, scores = (self._read(name, key, (len(boxes),)) for key in ('labels', 'scores'))
        self._check_labels(labels, name)
        set_detections(sample, boxes, labels, scores)

    def _set_class_map(self, sample: BaseDataElement, name: str) -> None:
        size = tuple(sample.ori_shape[:2])
        classes = self._read(name, 'classes', size)
        self._check_labels(classes, name)
        has_scores = f'scores_{self._indices[name]}' in self._arrays
        # One map of scores may separate two classes.
        scores = self._read(name, 'scores', (None, *size)) if has_scores else None
        set_class_map(sample, classes, scores)
