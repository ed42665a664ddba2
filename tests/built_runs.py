"""Runs that are built but not started, on data sets of a few pictures."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.engine.checks import check_built_parts
from tests.tiny_run import load_tiny_run


class Run:
    """A stand-in for mmengine's Runner, which builds loops on first access; its model is only a head.

    Args:
        cfg: The config.
        num_classes: Number of classes of the head.
        head: Name of the head in the model. Default: 'bbox_head'.
    """

    def __init__(self, cfg: ConfigDict, num_classes: int, head: str = 'bbox_head') -> None:
        self.cfg = cfg
        self.model = nn.Module()
        self.model.add_module(head, nn.Module())
        getattr(self.model, head).num_classes = num_classes
        self._load_from = cfg.get('load_from')
        for stage in ('train', 'val', 'test'):
            setattr(self, f'_{stage}_loop', cfg.get(f'{stage}_cfg'))

    def _loop(self, stage: str) -> SimpleNamespace:
        loader = Runner.build_dataloader(self.cfg[f'{stage}_dataloader'])
        setattr(self, f'{stage}_dataloader', loader)
        if stage != 'train':
            setattr(self, f'{stage}_evaluator', Runner.build_evaluator(self, self.cfg[f'{stage}_evaluator']))
        return SimpleNamespace()

    train_loop = cached_property(lambda self: self._loop('train'))
    val_loop = cached_property(lambda self: self._loop('val'))
    test_loop = cached_property(lambda self: self._loop('test'))


def check(cfg: ConfigDict, num_classes: int = 2, head: str = 'bbox_head', stages: tuple[str, ...] = ('train', 'val')):
    """Checks the built parts of a run against each other and returns the run."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        run = Run(cfg, num_classes, head)
        check_built_parts(run, stages)
    return run


def edit(path: Path, change: Callable[[dict], object]) -> Path:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def detection(folder: Path) -> Config:
    """The tiny detection run in a folder."""
    return load_tiny_run(folder)


def segmentation(folder: Path, masks: list[np.ndarray], classes: tuple[str, ...] = ('ground', 'thing')) -> Config:
    """A run on pictures with these masks, for training and validation."""
    for part in ('img', 'mask'):
        (folder / part).mkdir(exist_ok=True)
    for number, mask in enumerate(masks):
        cv2.imwrite(str(folder / 'img' / f'{number}.png'), np.zeros((*mask.shape[:2], 3), np.uint8))
        cv2.imwrite(str(folder / 'mask' / f'{number}.png'), mask)
    palette = [[number] * 3 for number in range(len(classes))]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        img_suffix='.png',
        metainfo=dict(classes=classes, palette=palette),
        data_prefix=dict(img_path='img', seg_map_path='mask'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    )
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
    return Config(
        dict(
            default_scope='mmseg',
            train_cfg=dict(),
            val_cfg=dict(),
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='IoUMetric'),
        )
    )


def classification(folder: Path, folders: tuple[str, ...] = ('cat', 'dog'), **dataset: object) -> Config:
    """A run on one picture in each folder."""
    for name in folders:
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / '0.png'), np.zeros((8, 8, 3), np.uint8))
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root=str(folder),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
            **dataset,
        ),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            train_cfg=dict(),
            val_cfg=dict(),
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='Accuracy'),
        )
    )
