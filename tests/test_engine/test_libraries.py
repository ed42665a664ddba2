"""Training, testing and prediction with models of mmpretrain and mmseg (for mmdet: test_training.py, test_tools.py)."""

import json

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.pictures import find_images
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.engine.testing import run_test
from mmgroupnet.engine.training import run_training

BACKBONE = """
backbone = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8, out_indices=(3, ))
statistics = dict(mean=[127.5] * 3, std=[60.] * 3)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
randomness = dict(seed=1)
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=2, to_rgb=True, **statistics)
model = dict(
    type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64, loss=dict(type='CrossEntropyLoss')))
dataset = dict(
    type='CustomDataset', data_root=data_root, data_prefix='images', metainfo=dict(classes=('dark', 'light')),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
val_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
val_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=1)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""
SEGMENTOR = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder', backbone=backbone,
    data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True, size=(32, 48), seg_pad_val=255, **statistics),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=0, channels=8, num_convs=1, concat_input=False, num_classes=2,
        norm_cfg=dict(type='BN'), align_corners=False),
    test_cfg=dict(mode='whole'))
dataset = dict(
    type='BaseSegDataset', data_root=data_root, data_prefix=dict(img_path='images/light', seg_map_path='maps'),
    img_suffix='.png', metainfo=dict(classes=('left', 'right'), palette=[[255, 0, 0], [0, 0, 255]]),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'), dataset=dataset)
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


def write_pictures(folder):
    """Writes four dark and four light pictures of 48x32 pixels. The light ones have class maps: class 0 in the left
    half, class 1 in the right half."""
    rng = np.random.default_rng(0)
    for part in ('images/dark', 'images/light', 'maps'):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        noise = rng.integers(0, 100, (32, 48, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f'images/dark/{number}.png'), noise)
        cv2.imwrite(str(folder / f'images/light/{number + 4}.png'), noise + 150)
        cv2.imwrite(str(folder / f'maps/{number + 4}.png'), np.repeat([[0, 1]], 24, axis=1).repeat(32, axis=0))


@pytest.fixture
def data(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('library', 'checkpoint', 'metric', 'pictures'),
    [(CLASSIFIER, 'epoch_1.pth', 'accuracy/top1', 8), (SEGMENTOR, 'iter_4.pth', 'mIoU', 4)],
    ids=['mmpretrain', 'mmseg'],
)
def test_train_test_and_predict(data, library, checkpoint, metric, pictures):
    shared = 'test_dataloader = val_dataloader\ntest_evaluator = val_evaluator\n'
    (data / 'config.py').write_text(f'data_root = {str(data)!r}\n{BACKBONE}{library}{shared}')

    def config():
        cfg = Config.fromfile(data / 'config.py')
        cfg.merge_from_dict(dict(work_dir=str(data / 'work'), launcher='none', experiment_name=data.name))
        check_arguments(cfg)
        return cfg

    run_training(config())
    with open(data / 'work/binary_statistics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    assert rows and all(0.02 < row['positive_share'] < 0.98 for row in rows)
    weights = str(data / 'work' / checkpoint)
    metrics = run_test(config(), weights, out=str(data / 'out.pkl'), show_dir=str(data / 'drawn'))
    assert 0 <= metrics[metric] <= 100
    assert (data / 'out.pkl').stat().st_size > 0
    assert len(list((data / 'drawn').rglob('*.png'))) == pictures
    assert 0 <= run_test(config(), weights, tta=True, show_dir=str(data / 'mirrored'))[metric] <= 100
    assert len(list((data / 'mirrored').rglob('*.png'))) == pictures
    drawn = draw_on_pictures(config(), weights, find_images(data / 'images/light'), data / 'predicted', device='cpu')
    assert len(list(drawn.iterdir())) == 4
