"""The shipped configs on small data sets in the layouts of VOC and Cityscapes: train for two iterations, evaluate."""

import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.testing import run_test
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError

ROOT = Path(__file__).parents[1]
_NUMBERS = itertools.count()


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A data set like VOC 2012 with SBD: two images each in `train`, `aug` and `val`."""
    root = tmp_path / 'VOCdevkit' / 'VOC2012'
    rng = np.random.default_rng(0)
    for split, folder in (('train', ''), ('aug', 'Aug'), ('val', '')):
        names = [f'{split}_{number}' for number in range(2)]
        for name in names:
            write(root / 'JPEGImages' / f'{name}.jpg', rng.integers(0, 255, (60, 80, 3)).astype(np.uint8))
            mask = np.zeros((60, 80), np.uint8)
            mask[10:40, 20:60] = rng.integers(1, 21)
            mask[10] = 255
            write(root / f'SegmentationClass{folder}' / f'{name}.png', mask)
        lists = root / 'ImageSets' / 'Segmentation'
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f'{split}.txt').write_text('\n'.join(names) + '\n')
    return root


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """A data set like Cityscapes with label ids converted by the tool: two images for training, one for evaluation."""
    root = tmp_path / 'cityscapes'
    rng = np.random.default_rng(0)
    for split, city, number in (('train', 'ulm', 0), ('train', 'ulm', 1), ('val', 'lindau', 0)):
        stem = f'{split}/{city}/{city}_{number:06d}_000019'
        write(root / f'leftImg8bit/{stem}_leftImg8bit.png', rng.integers(0, 255, (64, 128, 3)).astype(np.uint8))
        mask = np.full((64, 128), 7, np.uint8)
        mask[:20], mask[20:30, :40], mask[:, 100:] = 23, 26, 3
        write(root / f'gtFine/{stem}_gtFine_labelIds.png', mask)
    tool = ROOT / 'tools' / 'dataset_converters' / 'cityscapes.py'
    subprocess.run([sys.executable, tool, root, '--nproc', '1'], check=True)
    return root


def load(name: str, root: Path, **options: object) -> Config:
    """A shipped config with a narrow backbone, on a small data set."""
    cfg = load_config(str(ROOT / 'configs' / 'segmentation' / f'{name}.py'))
    text = cfg.pretty_text.replace(cfg.data_root.rstrip('/'), str(root))
    cfg = Config.fromstring(text, '.py')
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.backbone.num_bases': 2,
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
            'test_dataloader.num_workers': 0,
            'test_dataloader.persistent_workers': False,
            'work_dir': str(root.parent / 'work'),
            'experiment_name': root.parent.name,
            # mmengine reuses a visualizer, and its folder, if the name is the same.
            'visualizer.name': f'{root.parent.name}_{next(_NUMBERS)}',
            'launcher': 'none',
            **options,
        }
    )
    check_arguments(cfg)
    return cfg


def test_voc(voc):
    def config():
        # One epoch has two iterations, for the four images of `train` and `aug`.
        options = {
            'model.decode_head.in_channels': [32, 64],
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 1,
            'default_hooks.logger.interval': 1,
        }
        return load('fcn-16s_groupnet_r18_bpac_50e_voc12aug-480x480', voc, **options)

    model = run_training(config())
    assert model.backbone.stages[3][0].units[0].conv.branch_dilations() == (6, 7)
    log = next((voc.parent / 'work').glob('*/vis_data/scalars.json')).read_text()
    assert log.count('"decode.loss_ce"') == 2
    metrics = run_test(config(), str(voc.parent / 'work' / 'epoch_1.pth'), show_dir=str(voc.parent / 'drawn'))
    assert {'mIoU', 'mAcc', 'aAcc'} <= metrics.keys() and 0 <= metrics['mIoU'] <= 100
    assert len(list((voc.parent / 'drawn').rglob('*.jpg'))) == 2


def test_no_image_of_the_validation_split_is_trained_on(voc):
    cfg = load('fcn-32s_groupnet_r18_50e_voc12aug-480x480', voc)
    trained = [dataset.ann_file for dataset in cfg.train_dataloader.dataset.datasets]
    assert trained == ['ImageSets/Segmentation/train.txt', 'ImageSets/Segmentation/aug.txt']
    assert cfg.val_dataloader.dataset.ann_file == 'ImageSets/Segmentation/val.txt'


def test_a_mask_with_an_unknown_class_stops_training(voc):
    write(voc / 'SegmentationClass' / 'train_1.png', np.full((60, 80), 21, np.uint8))
    cfg = load('fcn-32s_groupnet_r18_50e_voc12aug-480x480', voc, **{'model.decode_head.in_channels': 64})
    with pytest.raises(UserError, match=r'train_1\.png holds the ids 21: PascalVOCDataset has the 21 classes 0 to 20'):
        run_training(cfg)


def test_cityscapes(cityscapes):
    def config():
        options = {
            'model.decode_head.in_channels': 64,
            'model.decode_head.num_bases': 2,
            'model.decode_head.channels': 16,
            'model.auxiliary_head.in_channels': 32,
            'model.auxiliary_head.num_bases': 2,
            'train_dataloader.batch_size': 1,
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 1,
            'default_hooks.logger.interval': 1,
        }
        return load('deeplabv3_groupnet_r18_bpac_200e_cityscapes-512x1024', cityscapes, **options)

    run_training(config())
    log = next((cityscapes.parent / 'work').glob('*/vis_data/scalars.json')).read_text()
    assert log.count('"aux.loss_ce"') == 2
    metrics = run_test(config(), str(cityscapes.parent / 'work' / 'epoch_1.pth'))
    assert 0 <= metrics['mIoU'] <= 100
