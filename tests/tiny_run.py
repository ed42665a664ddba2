"""A detection set of a few coloured squares and a config that trains on it in seconds."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

CONFIG = """
default_scope = 'mmdet'
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[60.] * 3, bgr_to_rgb=True,
    pad_size_divisor=32), backbone=dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8,
    out_indices=(1, 2)), neck=dict(type='mmgroupnet.BinaryFPN', in_channels=[16, 32], out_channels=8, num_outs=2,
    num_bases=2), bbox_head=dict( type='FCOSHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
    strides=(8, 16), regress_ranges=((-1, 24), (24, 1e8)), norm_cfg=dict(type='BN')), test_cfg=dict(nms_pre=100,
    score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))

data_root = '{data_root}'
metainfo = dict(classes=('red', 'blue'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root=data_root, ann_file='annotations/train.json', data_prefix=dict(img='images/'),
        metainfo=metainfo, pipeline=load + [dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root=data_root, ann_file='annotations/val.json', data_prefix=dict(img='images/'),
        metainfo=metainfo, test_mode=True, pipeline=[load[0], dict(type='Resize', scale=(64, 48), keep_ratio=True),
        load[1], dict(type='PackDetInputs', meta_keys=meta_keys)]))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + '/annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3))
log_processor = dict(window_size=1)
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=3)
auto_scale_lr = dict(enable=False, base_batch_size=2)
"""


def _draw(folder: Path, name: str, numbers: range, rng: np.random.Generator) -> None:
    images, annotations = [], []
    for number in numbers:
        picture = rng.integers(90, 160, (48, 64, 3)).astype(np.uint8)
        category = number % 2 + 1
        side, x, y = (int(value) for value in rng.integers((12, 2, 2), (24, 36, 20)))
        picture[y : y + side, x : x + side] = (20, 20, 230) if category == 1 else (230, 20, 20)
        cv2.imwrite(str(folder / 'images' / f'{number}.png'), picture)
        images.append(dict(id=number, file_name=f'{number}.png', height=48, width=64))
        box = dict(
            id=number + 1, image_id=number, category_id=category, bbox=[x, y, side, side], area=side * side, iscrowd=0
        )
        annotations.append(box)
    categories = [dict(id=1, name='red'), dict(id=2, name='blue')]
    (folder / 'annotations' / f'{name}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def write_tiny_run(folder: Path) -> Path:
    """Writes the data set (8 images to train, 4 to evaluate, 64x48) and the config.

    Returns:
        The config's file.
    """
    data = folder / 'data'
    for part in ('images', 'annotations'):
        (data / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    _draw(data, 'train', range(8), rng)
    _draw(data, 'val', range(8, 12), rng)
    config = folder / 'tiny.py'
    config.write_text(CONFIG.replace('{data_root}', str(data)))
    return config


def load_tiny_run(folder: Path, **overrides: object) -> Config:
    """As :func:`write_tiny_run` where it was not yet written, and loads the config with ``work_dir`` ``folder /
    'work'``.

    Args:
        folder: An empty folder.
        overrides: Settings by their dotted path, with ``__`` in place of the dots.
    """
    config = folder / 'tiny.py'
    cfg = Config.fromfile(config if config.exists() else write_tiny_run(folder))
    options = {
        'work_dir': str(folder / 'work'),
        'launcher': 'none',
        **{key.replace('__', '.'): value for key, value in overrides.items()},
    }
    # mmengine keeps loggers and scopes by the experiment's name, by default the time in seconds.
    cfg.merge_from_dict(dict(experiment_name=f'{folder.name}_{Path(options["work_dir"]).name}', **options))
    return cfg
