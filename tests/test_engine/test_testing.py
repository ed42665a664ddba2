"""Testing checkpoints with typical configs."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.engine.libraries import library_of
from mmgroupnet.engine.testing import adopt_validation, augment_test, draw_predictions, run_test
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run

# A config in pure Python style: classes in place of names, and no default scope. It must be set to None, since mmengine
# sets a missing one to 'mmengine'.
PURE = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FCOS, DetDataPreprocessor, DetTTAModel, FCOSHead
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.runner import TestLoop

from mmgroupnet.models import BinaryFPN, GroupNetResNet

default_scope = None
model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[127.5] * 3, std=[60.0] * 3, pad_size_divisor=32),
    backbone=dict(
        type=GroupNetResNet, depth=18, num_bases=2, base_channels=8, stage_blocks=(1, 1, 2), strides=(1, 2, 2),
        dilations=(1, 1, 1), out_indices=(1, 2)),
    neck=dict(type=BinaryFPN, in_channels=[16, 32], out_channels=8, num_outs=2, num_bases=2),
    bbox_head=dict(
        type=FCOSHead, num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1, strides=(8, 16),
        regress_ranges=((-1, 24), (24, 1e8)), norm_cfg=dict(type='BN')),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root='{root}', ann_file='annotations/val.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=('red', 'blue')), test_mode=True,
        pipeline=[
            dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 48), keep_ratio=True),
            dict(type=LoadAnnotations, with_bbox=True),
            dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_evaluator = dict(type=CocoMetric, ann_file='{root}/annotations/val.json', metric='bbox')
test_cfg = dict(type=TestLoop)
tta_model = dict(type=DetTTAModel, tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=10))
visualizer = dict(type=DetLocalVisualizer)
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The folder of a tiny run with a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('testing')
    cfg = load_tiny_run(folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def in_two_folders(cfg: Config, root: Path) -> None:
    """Doubles the test data: adds copies of the pictures with the same names in another folder."""
    data = root / 'data'
    shutil.copytree(data / 'images', data / 'more/images', dirs_exist_ok=True)
    plain = cfg.test_dataloader.dataset
    other = dict(plain, data_prefix=dict(img='more/images/'))
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[plain, other])


@pytest.mark.parametrize('tta', [False, True])
def test_pictures_of_one_name_in_two_folders_are_all_drawn(trained, tmp_path, tta):
    cfg = load_tiny_run(trained, work_dir=str(tmp_path))
    in_two_folders(cfg, trained)
    # Without default_hooks in the config, mmengine's own default hooks remain.
    cfg.pop('default_hooks')
    cfg.pop('visualizer')
    run_test(cfg, str(trained / 'weights.pth'), show_dir=str(tmp_path / 'drawn'), tta=tta)
    expected = [f'{folder}/{number}.png' for folder in ('images', 'more/images') for number in (10, 11, 8, 9)]
    assert names_in(tmp_path / 'drawn') == expected
    drawn = cv2.imread(str(tmp_path / 'drawn/images/8.png'))
    assert drawn.shape == (48, 128, 3)  # predictions next to the ground truth
    assert (drawn != np.tile(cv2.imread(str(trained / 'data/images/8.png')), (1, 2, 1))).any()


def test_settings_of_the_hook_of_a_config_are_kept(trained):
    own = dict(type='DetVisualizationHook', draw=True, interval=3, score_thr=0.7)
    cfg = load_tiny_run(trained, default_hooks__visualization=own)
    draw_predictions(cfg, False, 'drawn', 2)
    assert 'visualization' not in cfg.default_hooks
    (hook,) = cfg.custom_hooks
    assert (hook.type, hook.score_thr, hook.out_dir) == ('mmgroupnet.DrawPredictionsHook', 0.7, 'drawn')


def test_a_config_of_pure_python_and_its_dump(trained, tmp_path):
    (tmp_path / 'pure.py').write_text(PURE.replace('{root}', str(trained / 'data')))
    Config.fromfile(tmp_path / 'pure.py').dump(tmp_path / 'dumped.py')
    results = []
    for name in ('pure', 'dumped'):
        cfg = Config.fromfile(tmp_path / f'{name}.py')
        assert library_of(cfg) == 'mmdet'
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / name), launcher='none', experiment_name=str(tmp_path / name)))
        show_dir, weights = tmp_path / f'drawn_{name}', str(trained / 'weights.pth')
        results.append(run_test(cfg, weights, show_dir=str(show_dir), tta=True, out=str(tmp_path / 'out.pkl')))
        assert names_in(show_dir) == ['10.png', '11.png', '8.png', '9.png']
    assert results[0] == results[1] and 'coco/bbox_mAP' in results[0]


@pytest.mark.parametrize(
    ('model', 'library'),
    [
        (dict(type='mmdet.FCOS'), 'mmdet'),
        (dict(type='mmseg.models.segmentors.EncoderDecoder'), 'mmseg'),
        (dict(type='mmgroupnet.Packed', model=dict(type='mmpretrain.ImageClassifier')), 'mmpretrain'),
        (dict(type='mmgroupnet.AugmentedSegmentor', module=dict(type='mmseg.EncoderDecoder')), 'mmseg'),
        (dict(type='mmgroupnet.GroupNetResNet'), None),
    ],
)
def test_library_of_a_model(model, library):
    assert library_of(Config(dict(model=model))) == library
    assert library_of(Config(dict(model=model, default_scope='mmseg'))) == 'mmseg'


def test_validation_data_stand_in_for_missing_test_data(trained, tmp_path):
    cfg = load_tiny_run(trained, work_dir=str(tmp_path))
    expected = run_test(cfg, str(trained / 'weights.pth'))
    cfg = load_tiny_run(trained, work_dir=str(tmp_path / 'without'))
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    assert run_test(cfg, str(trained / 'weights.pth')) == expected


def test_predictions_alone(trained, tmp_path):
    cfg = load_tiny_run(trained, work_dir=str(tmp_path), test_evaluator=[])
    assert run_test(cfg, str(trained / 'weights.pth'), out=str(tmp_path / 'out.pkl')) == {}
    assert len(load(tmp_path / 'out.pkl')) == 4


def test_misuse(trained):
    cfg = load_tiny_run(trained, test_dataloader=None, val_dataloader=None)
    with pytest.raises(UserError, match='neither a test_dataloader nor a val_dataloader: give it one'):
        adopt_validation(cfg)
    cfg = load_tiny_run(trained, test_evaluator=None)
    with pytest.raises(UserError, match='test data and no test_evaluator: give its metrics'):
        adopt_validation(cfg)


def test_meta_keys_of_a_config_are_kept_for_augmentation(trained):
    cfg = load_tiny_run(trained)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'text')
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys = keys
    augment_test(cfg)
    (pack,) = cfg.test_dataloader.dataset.pipeline[-1].transforms[-1]
    assert pack.type == 'PackDetInputs' and pack.meta_keys == (*keys, 'flip', 'flip_direction')
