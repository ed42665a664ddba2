"""Replaces a config's model by a file outside torch, which provides the predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmgroupnet.engine.configs import resolve_type
from mmgroupnet.engine.data import few_names
from mmgroupnet.errors import UserError

_TASKS = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')
# Types of models by the ending of their files.
_TYPES = {'.onnx': 'mmgroupnet.OnnxModel', '.npz': 'mmgroupnet.StoredPredictions'}
# First keys of settings that such a file fixes.
_FIXED = ('model', 'data_preprocessor', 'tta_model')


class ExportedModel(BaseModel):
    """Base of the models without weights, whose predictions come from a file.

    A subclass sets the same fields in the data samples of a batch as the libraries' own models. It takes the pictures
    from the test pipeline and computes on the CPU, even if the Runner moves the model to another device.

    Args:
        file: The file.
        metadata: The metadata of the file, see docs/onnx_file.md.
        multi_label: ``thr`` and ``topk`` of a head for several classes per picture. Default: None, one class.
    """

    def __init__(self, file: str, metadata: Mapping, multi_label: Mapping | None = None) -> None:
        super().__init__()
        self.file = file
        self.metadata = metadata
        self.multi_label = multi_label

    def __deepcopy__(self, memo: dict) -> 'ExportedModel':
        return self  # Hooks that average weights copy the model. It has no weights, and a session cannot be copied.

    @property
    def dataset_metainfo(self) -> dict:
        """Classes and palette as in the checkpoint of a trained model, if the file has them."""
        found: dict[str, Any] = {}
        if self.metadata['classes'] is not None:
            found['classes'] = tuple(self.metadata['classes'])
        if self.metadata['palette'] is not None:
            found['palette'] = [tuple(color) for color in self.metadata['palette']]
        return found

    def test_step(self, data: Mapping) -> list[BaseDataElement]:
        """Predicts a batch.

        Args:
            data: ``inputs``, uint8 ``(3, H, W)`` in a list or stacked, and their ``data_samples``.

        Returns:
            The data samples, with predictions.
        """
        if self.metadata['task'] == 'detection':
            from mmdet.models.utils.misc import samplelist_boxtype2tensor  # Other libraries do not need mmdet.

            # As in mmdet's own preprocessing, because drawing the ground truth needs it.
            samplelist_boxtype2tensor(data['data_samples'])
        return self(data['inputs'], data['data_samples'], mode='predict')

    def check_task(self, scope: str | None) -> None:
        """Checks that the task of the file is that of a config.

        Args:
            scope: The config's ``default_scope``.

        Raises:
            UserError: If the tasks differ.
        """
        task = self.metadata['task']
        if scope not in _TASKS:
            raise UserError(
                f'{self.file} needs a config whose default_scope is one of {", ".join(_TASKS)}, not {scope!r}'
            )
        if task == 'maps':
            raise UserError(f'{self.file} gives maps of the network (--raw), no predictions: take its checkpoint')
        if task != _TASKS[scope]:
            raise UserError(
                f'{self.file} is of a model for {task}, the config (default_scope={scope!r}) is for {_TASKS[scope]}: '
                'give the config that it was exported with'
            )

    def check_dataset(self, dataset: BaseDataset) -> None:
        """Checks that the file's classes are those of a data set; files without classes are not checked.

        Args:
            dataset: The test data.

        Raises:
            UserError: If the classes differ.
        """
        expected, found = getattr(dataset, 'metainfo', {}).get('classes'), self.metadata['classes']
        if expected is not None and found is not None and list(found) != list(expected):
            raise UserError(
                f'{self.file} is for {len(found)} classes ({few_names(found)}), the test data for {len(expected)} '
                f'({few_names(expected)}): give the config that it was exported with'
            )


def set_detections(sample: BaseDataElement, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    """Puts detections into a data sample of mmdet.

    Args:
        sample: The sample, changed in place.
        boxes: x1, y1, x2, y2 in pixels of the original picture, ``(n, 4)``.
        labels: Classes, ``(n,)``.
        scores: ``(n,)``.
    """
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def set_class_map(sample: BaseDataElement, classes: np.ndarray, scores: np.ndarray | None = None) -> None:
    """Puts a class map into a data sample of mmseg.

    Args:
        sample: The sample, changed in place.
        classes: The map, with ``(H, W)`` of the original picture.
        scores: Scores of all classes, or one score that separates two classes, ``(C, H, W)``. Default: None.
    """
    sample.pred_sem_seg = PixelData(data=torch.tensor(classes, dtype=torch.int64)[None])
    if scores is not None:
        sample.seg_logits = PixelData(data=torch.tensor(scores, dtype=torch.float32))


def set_class_scores(sample: BaseDataElement, scores: np.ndarray, multi_label: Mapping | None = None) -> None:
    """Puts scores of classes into a data sample of mmpretrain, and the best class or classes.

    Args:
        sample: The sample, changed in place.
        scores: ``(C,)``.
        multi_label: As for :class:`ExportedModel`.
    """
    values = torch.tensor(scores, dtype=torch.float32)
    if multi_label is None:
        labels = values.argmax(dim=0, keepdim=True)
    elif multi_label['thr'] is not None:
        labels = torch.where(values >= multi_label['thr'])[0]
    else:
        labels = values.topk(multi_label['topk']).indices
    sample.set_pred_score(values).set_pred_label(labels)


def _multi_label(cfg: Config) -> dict | None:
    """``thr`` and ``topk`` of the head of a config for several classes per picture."""
    if cfg.get('default_scope') != 'mmpretrain':
        return None
    from mmpretrain.models.heads import MultiLabelClsHead  # Other libraries do not need mmpretrain.

    model = cfg.model
    while isinstance(model.get('model'), Mapping):  # binarised or packed
        model = model.model
    head = model.get('head') or {}
    kind = resolve_type(head['type'], 'mmpretrain') if 'type' in head else None
    if not (isinstance(kind, type) and issubclass(kind, MultiLabelClsHead)):
        return None
    thr, topk = head.get('thr'), head.get('topk')
    return dict(thr=0.5 if thr is None and topk is None else thr, topk=topk)  # as the head reads them


def is_exported(path: str | Path) -> bool:
    """Whether a file replaces a model: an .onnx file, or an .npz file of predictions."""
    return Path(path).suffix in _TYPES


def adopt_exported(cfg: Config, path: str | Path) -> None:
    """Makes a config take its predictions from a file.

    Args:
        cfg: The config, changed in place: the file becomes its model, and no checkpoint is loaded.
        path: The file.

    Raises:
        UserError: If it does not exist, or several processes are requested.
    """
    if not Path(path).is_file():
        raise UserError(f'{path} does not exist')
    if cfg.get('launcher', 'none') != 'none':
        raise UserError(f'--launcher {cfg.launcher}: {path} is evaluated by one process, leave the launcher out')
    multi_label = _multi_label(cfg)
    cfg.model = ConfigDict(type=_TYPES[Path(path).suffix], file=str(path))
    if multi_label is not None:
        cfg.model.multi_label = multi_label
    cfg.load_from = None


def check_model_options(path: str | Path, options: Sequence[str]) -> None:
    """Checks that no option is meant for the model that a file replaces.

    Args:
        path: The file, or a checkpoint, for which all options are allowed.
        options: Dotted paths of ``--cfg-options``.

    Raises:
        UserError: Naming the first one that would change nothing.
    """
    for option in options if is_exported(path) else ():
        if option.split('.')[0] in _FIXED:
            raise UserError(f'--cfg-options {option}: {path} was made with another value, export it again')
