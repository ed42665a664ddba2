"""Draws the pictures of a test."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.checkpoints.read import first_meta
from mmgroupnet.engine.drawing import build_visualizer, draw
from mmgroupnet.engine.pictures import OutputFiles, decode, make_folder
from mmgroupnet.errors import UserError
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class DrawPredictionsHook(Hook):
    """Draws every picture of a test with its predictions and its ground truth, each into its own file.

    The libraries' own hooks write pictures with the same name from different folders into one file.

    Args:
        library: 'mmdet', 'mmseg' or 'mmpretrain'.
        out_dir: Folder for the pictures, which keep their names and their folders below ``root``. Default: None, no
            pictures are written.
        root: The folder of the test data's pictures. Default: '', the current one.
        score_thr: Detections below this score are not drawn. Default: 0.3.
        show: Open a window. Default: False.
        wait_time: Seconds that a window stays. Default: 2.
        backend_args: How mmengine reads the pictures' files. Default: None, from the disk.
    """

    def __init__(
        self,
        library: str,
        out_dir: str | None = None,
        root: str = '',
        score_thr: float = 0.3,
        show: bool = False,
        wait_time: float = 2,
        backend_args: dict | None = None,
    ) -> None:
        self.library = library
        self.root = root
        self.files = None if out_dir is None else OutputFiles(out_dir, root)
        self.options: dict[str, Any] = dict(score_thr=score_thr, show=show, wait_time=wait_time)
        self.backend_args = backend_args
        self.num_drawn = 0

    def before_test(self, runner: Runner) -> None:
        if get_world_size() > 1:
            raise UserError(
                "--show and --show-dir: OpenMMLab's visualizers draw only in the first process; test with one process"
            )
        if self.files is not None:
            make_folder(self.files.folder)
        # A separate visualizer: with the run's, a window would leave files in the log's folder.
        self.visualizer = build_visualizer(runner.cfg, self.library, first_meta(runner.visualizer.dataset_meta))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        # Samples of videos hold one sample per frame.
        samples = [frame for sample in outputs or () for frame in getattr(sample, 'video_data_samples', [sample])]
        for index, sample in enumerate(samples):
            name = sample.get('img_path')
            if name is None:
                # A data set of arrays.
                name = os.path.join(self.root, f'{self.num_drawn:06}.png')
                pixels = self._input(data_batch, index)
            else:
                decoded = decode(get(name, backend_args=self.backend_args))
                if decoded is None:
                    raise UserError(f'{name} cannot be drawn on: OpenCV cannot read it')
                pixels = decoded
            out_file = None if self.files is None else self.files.path_of(name)
            draw(self.visualizer, self.library, pixels, sample, out_file, **self.options)
            self.num_drawn += 1

    def _input(self, data_batch: Any, index: int) -> np.ndarray:
        """The picture from the test pipeline, which equals that of the file if nothing resizes it."""
        if self.library != 'mmpretrain':
            raise UserError("the test pipeline leaves no 'img_path': give it among the meta_keys of its last step")
        inputs = data_batch['inputs']
        if isinstance(inputs[0], list) or inputs[0].ndim == 4:
            inputs = inputs[0]  # In test-time augmentation, the first picture is the original one.
        pixels = inputs[index].permute(1, 2, 0).cpu().numpy().astype('uint8')
        return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
