"""Evaluates exported models like checkpoints."""

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmgroupnet.engine.exported_model import ExportedModel, set_class_map, set_class_scores, set_detections
from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS


def _import_runtime(file: str) -> ModuleType:
    try:
        import mmgroupnet_runtime
    except ImportError as error:
        raise UserError(
            f'{file} is run by the package mmgroupnet-runtime, which cannot be imported ({error}): '
            'build it in a checkout (make runtime), and elsewhere install the wheel that this writes to runtime/dist'
        ) from error
    return mmgroupnet_runtime


@MODELS.register_module()
class OnnxModel(ExportedModel):
    """An .onnx file of tools/deploy/export_onnx.py, which replaces the model that it was made from.

    Args:
        file: The file.
        data_preprocessor: Ignored, because the graph contains the preprocessing. Default: None.
        multi_label: As for :class:`ExportedModel`. Default: None.

    Raises:
        UserError: If the runtime is missing or cannot load the file.
    """

    def __init__(self, file: str, data_preprocessor: dict | None = None, multi_label: dict | None = None) -> None:
        runtime = _import_runtime(file)
        try:
            model = runtime.load(file)
        except runtime.UserError as error:
            raise UserError(str(error)) from error
        super().__init__(file, model.metadata, multi_label)
        self.model = model
        self._runtime = runtime

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[BaseDataElement], mode: str = 'predict'
    ) -> list[BaseDataElement]:
        """Predicts a batch, at once if all pictures have one size before and after the test pipeline, otherwise one by
        one.

        Each picture is padded separately; mmdet does so only if the pictures of a batch have one size.

        Args:
            inputs: uint8 ``(3, H, W)``, BGR, in a list or stacked.
            data_samples: Changed in place.
            mode: Only ``'predict'``. Default: ``'predict'``.

        Returns:
            The data samples, with predictions.

        Raises:
            UserError: If the pictures are of another type, or the runtime refuses them.
        """
        for image in inputs:
            if image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
                raise UserError(
                    f'{self.file} takes pictures of uint8 (3, H, W), the test pipeline makes {image.dtype} '
                    f'{tuple(image.shape)}: load them in colour, without to_float32 and Normalize'
                )
        for images, samples in self._groups(inputs, data_samples):
            pictures = torch.stack(images).permute(0, 2, 3, 1).contiguous().numpy()
            size = tuple(samples[0].ori_shape[:2]) if self.metadata['task'] == 'segmentation' else None
            try:
                answers = self.model.run(pictures, size=size)
            except self._runtime.UserError as error:
                raise UserError(str(error)) from error
            for index, sample in enumerate(samples):
                self._set_answer(sample, {name: answer[index] for name, answer in answers.items()})
        return data_samples

    @staticmethod
    def _groups(
        inputs: Sequence[Tensor], samples: list[BaseDataElement]
    ) -> Iterator[tuple[list[Tensor], list[BaseDataElement]]]:
        sizes = {(image.shape, sample.get('ori_shape')) for image, sample in zip(inputs, samples, strict=True)}
        if len(sizes) == 1:
            yield list(inputs), samples
        else:
            yield from (([image], [sample]) for image, sample in zip(inputs, samples, strict=True))

    def _set_answer(self, sample: BaseDataElement, answer: dict[str, np.ndarray]) -> None:
        task = self.metadata['task']
        if task == 'detection':
            found = answer['labels'] >= 0  # Pictures with fewer detections than others end in rows of label -1.
            dets = answer['dets'][found]
            # Multiplied by the reciprocal, as in mmdet, so that pixels are equal to the last bit.
            scale = np.array([1 / factor for factor in sample.get('scale_factor', (1, 1))] * 2, np.float32)
            set_detections(sample, dets[:, :4] * scale, answer['labels'][found], dets[:, 4])
        elif task == 'segmentation':
            set_class_map(sample, answer['classes'], answer.get('scores'))
        else:
            set_class_scores(sample, answer['scores'], self.multi_label)
