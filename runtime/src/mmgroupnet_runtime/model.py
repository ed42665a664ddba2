"""A model from an .onnx file, an object that is called with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmgroupnet_runtime.answers import Classification, Detections, Segmentation
from mmgroupnet_runtime.errors import UserError
from mmgroupnet_runtime.machine import core_name, import_onnxruntime, library_path
from mmgroupnet_runtime.onnx_file import Header, read_header
from mmgroupnet_runtime.resize import apply_steps

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def load(path: str | Path, threads: int | None = None) -> Model:
    """Loads a file that ``mmgroupnet export`` wrote.

    Args:
        path: The .onnx file.
        threads: Number of threads, at most 256. Default: None, ONNX Runtime uses one per core.

    Returns:
        The model.

    Raises:
        UserError: If the file is missing, damaged, too new or not written by mmgroupnet, or ONNX Runtime or the library
            of our operators is missing or does not run here.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256):
        raise UserError(f'threads={threads!r}: give an integer from 1 to 256, or None for one per core')
    path = Path(path)
    header = read_header(path)
    return Model(header, _open_session(path, header, threads or 0))


def _open_session(path: Path, header: Header, threads: int) -> InferenceSession:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Warnings about missing GPUs would hide our own messages.
    # Errors of ONNX Runtime have no common class of their own.
    if header.has_binary_layers:
        library = library_path()
        if threads:
            # ONNX Runtime does not tell operators the number.
            options.add_session_config_entry('mmgroupnet.threads', str(threads))
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise UserError(
                f'onnxruntime {onnxruntime.__version__} on {core_name()} refuses {library}: install the wheel of this '
                f'machine again, `pip install --force-reinstall --no-deps mmgroupnet_runtime-*.whl` ({error})'
            ) from error
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:
        raise UserError(
            f'onnxruntime {onnxruntime.__version__} refuses {path}: copy it again, or write it again with '
            f'`mmgroupnet export` ({error})'
        ) from error


class Model:
    """A network that is called with pictures.

    Args:
        header: What :func:`~mmgroupnet_runtime.onnx_file.read_header` returns for the file.
        session: ONNX Runtime's session for the file.

    Attributes:
        task: 'detection', 'segmentation', 'classification' or 'maps'.
        classes: Names of the classes, or None if the file has none.
        palette: Their colours, ``[[r, g, b], ...]``, or None.
        metadata: The metadata that the exporter wrote into the file, see docs/onnx_file.md.
        session: ONNX Runtime's session.
    """

    def __init__(self, header: Header, session: InferenceSession) -> None:
        self.metadata = header.metadata
        self.has_binary_layers = header.has_binary_layers
        self.session = session
        self.task: str = self.metadata['task']
        self.classes: list[str] | None = self.metadata['classes']
        self.palette: list[list[int]] | None = self.metadata['palette']
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, picture: np.ndarray) -> Detections | Segmentation | Classification:
        """Runs the network on one picture.

        Args:
            picture: BGR, uint8 ``(H, W, 3)``, as ``cv2.imread`` gives it.

        Returns:
            The objects, the class of each pixel, or the scores of the classes, depending on the model's task.

        Raises:
            UserError: If the picture is not such an array, the file has no resize rule, or the task is 'maps'.
        """
        return self.answer(self.prepare(picture), picture.shape[:2])

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """Resizes and crops a picture as the test pipeline of the model does.

        Args:
            picture: BGR, uint8 ``(H, W, 3)``.

        Returns:
            uint8 ``(h, w, 3)``, one of the images that :meth:`run` takes.

        Raises:
            UserError: If the picture is not such an array, no pixels would be left, or the file has no resize rule.
        """
        _check_pixels('picture', picture, '(height, width, 3)')
        if self.metadata['resize'] is None:
            raise UserError(
                'the file does not say how pictures are resized: resize them as the test pipeline of its config does, '
                'then call model.answer(image, size) or model.run(images)'
            )
        return apply_steps(picture, self.metadata['resize'])

    def run(self, images: np.ndarray, size: Sequence[int] | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Runs only the network, without the resize rule, on a batch.

        Args:
            images: BGR, uint8 ``(N, H, W, 3)``.
            size: Height and width of the class maps, only for a segmentation model. Default: those of ``images``.

        Returns:
            Its outputs by their names, see docs/onnx_file.md.

        Raises:
            UserError: If an argument has the wrong type or shape, or the network fails on it.
        """
        _check_pixels('images', images, '(N, height, width, 3)')
        feed = {'image': images}
        if self.task == 'segmentation':
            feed['size'] = _check_size(images.shape[1:3] if size is None else size)
        elif size is not None:
            raise UserError(f'size={size!r}: a model of the task {self.task!r} takes no size')
        try:
            outputs = self.session.run(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's errors have no common class.
            raise UserError(f'the network fails on images of the shape {images.shape}: {error}') from error
        return dict(zip(self._outputs, outputs, strict=True))

    def answer(self, image: np.ndarray, size: tuple[int, int]) -> Detections | Segmentation | Classification:
        """Runs the network on a picture that is already prepared.

        Args:
            image: What :meth:`prepare` returned, uint8 ``(h, w, 3)``.
            size: Height and width of the original picture; the answer is in its pixels.

        Returns:
            As the call of the model.

        Raises:
            UserError: As the call of the model.
        """
        _check_pixels('image', image, '(height, width, 3)')
        checked = _check_size(size)
        if self.task == 'maps':
            raise UserError(
                'the file was exported with --raw, so its network gives maps and no answer: call model.run(images), or '
                'export it without --raw'
            )
        if self.task == 'classification':
            return Classification(self.run(image[None])['scores'][0])
        if self.task == 'segmentation':
            outputs = self.run(image[None], checked)
            scores = outputs.get('scores')
            return Segmentation(outputs['classes'][0], None if scores is None else scores[0])
        outputs = self.run(image[None])
        found = outputs['labels'][0] >= 0  # Rows that fill up a batch have the label -1.
        detections = outputs['dets'][0][found]
        # Times a reciprocal in float64, as mmdet rescales boxes, so that they are equal to the last bit.
        scale = [1 / (new / old) for new, old in zip(image.shape[1::-1], checked[::-1], strict=True)]
        boxes = detections[:, :4] * np.array(scale * 2, np.float32)
        return Detections(boxes, outputs['labels'][0][found], detections[:, 4])


def _check_pixels(name: str, pixels: np.ndarray, shape: str) -> None:
    """Checks an argument that holds one picture or several."""
    allowed = f'a uint8 array {shape} is needed, BGR, as cv2.imread gives it'
    if not isinstance(pixels, np.ndarray):
        raise UserError(f'{name} is a {type(pixels).__name__}: {allowed}')
    if pixels.dtype != np.uint8 or pixels.ndim != shape.count(',') + 1 or pixels.shape[-1] != 3 or not pixels.size:
        raise UserError(f'{name} is a {pixels.dtype} array of the shape {pixels.shape}: {allowed}')


def _check_size(size: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns a height and a width as the network takes them, int64 ``(2,)``."""
    array = np.asarray(size)
    if array.shape != (2,) or array.dtype.kind not in 'iu' or (array < 1).any():
        raise UserError(f'size={size!r}: height and width are needed, two integers of at least 1')
    return array.astype(np.int64)
