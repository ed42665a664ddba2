"""Errors for data that is missing or does not fit."""

import re
import shutil

import pytest

from mmgroupnet.engine.data import check_data
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run

LOADERS = ['train_dataloader', 'val_dataloader', 'test_dataloader']


@pytest.fixture
def cfg(tmp_path):
    return load_tiny_run(tmp_path)


def refuse(cfg, message, loaders=LOADERS):
    with pytest.raises(UserError, match=re.escape(message)):
        check_data(cfg, loaders)


def test_good_data_passes(cfg):
    check_data(cfg, LOADERS)
    cfg.val_dataloader = None
    check_data(cfg, LOADERS)


def test_a_missing_folder(cfg, tmp_path):
    data = tmp_path / 'data'
    shutil.rmtree(data)
    refuse(
        cfg,
        f'data folder {data} (train_dataloader) does not exist. Expected in it: {data}/annotations/train.json, '
        f'{data}/images. Link your copy: ln -sn /path/to/data {data}',
    )


def test_a_missing_set_that_is_made_on_the_spot(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.train_dataloader.dataset.data_root = 'data/digits/'
    refuse(cfg, 'data folder data/digits (train_dataloader) does not exist. ')
    refuse(cfg, '. Make it: python -m mmgroupnet digits')


def test_a_broken_link(cfg, tmp_path):
    (tmp_path / 'data').rename(tmp_path / 'elsewhere')
    (tmp_path / 'data').symlink_to(tmp_path / 'elsewhere')
    check_data(cfg, LOADERS)
    shutil.rmtree(tmp_path / 'elsewhere')
    refuse(cfg, f'is a link to {tmp_path}/elsewhere, which does not exist')


def test_a_missing_annotation_file(cfg, tmp_path):
    (tmp_path / 'data/annotations/val.json').unlink()
    check_data(cfg, ['train_dataloader'])
    refuse(cfg, f'annotation file {tmp_path}/data/annotations/val.json (val_dataloader) does not exist')


def test_a_missing_image_folder(cfg, tmp_path):
    shutil.rmtree(tmp_path / 'data/images')
    refuse(cfg, f'image folder {tmp_path}/data/images (train_dataloader) does not exist')


def test_addresses_are_not_on_this_disk(cfg):
    dataset = cfg.train_dataloader.dataset
    dataset.ann_file = 'https://example.org/train.json'
    dataset.data_prefix = dict(img='s3://bucket/images')
    check_data(cfg, LOADERS)


def test_masks_that_no_step_loads(cfg, tmp_path):
    dataset = cfg.train_dataloader.dataset
    dataset.data_prefix.seg_map_path = 'masks'
    dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    check_data(cfg, LOADERS)
    dataset.pipeline.insert(1, dict(type='LoadAnnotations'))
    refuse(cfg, f'image folder {tmp_path}/data/masks (train_dataloader) does not exist')


def test_wrapped_data_sets(cfg, tmp_path):
    inner = cfg.train_dataloader.dataset
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner, inner]))
    cfg.train_dataloader = dict(batch_size=1, dataset=wrapped)
    check_data(cfg, LOADERS)
    (tmp_path / 'data/annotations/train.json').unlink()
    refuse(cfg, 'train.json (train_dataloader) does not exist')


def test_an_empty_annotation_file(cfg, tmp_path):
    train = tmp_path / 'data/annotations/train.json'
    train.write_text('')
    refuse(cfg, f'annotation file {train} (train_dataloader) is empty')


def test_no_annotation_file(cfg):
    cfg.train_dataloader.dataset.ann_file = None
    check_data(cfg, LOADERS)


def test_classes_that_are_a_string(cfg, tmp_path):
    cfg.val_dataloader.dataset.metainfo = dict(classes='red')
    refuse(
        cfg,
        "classes='red' (val_dataloader) is a string, and no file of names: a single class is written with a comma, "
        "classes=('red',)",
    )
    (tmp_path / 'names.txt').write_text('red')
    cfg.val_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'names.txt'))
    check_data(cfg, LOADERS)


def test_a_class_that_is_there_twice(cfg):
    cfg.train_dataloader.dataset.metainfo = dict(classes=('red', 'blue', 'red'))
    refuse(cfg, "classes of the dataset (train_dataloader): 'red' is there twice")


@pytest.mark.parametrize('wrap', [lambda one: one, lambda one: [one], lambda one: dict(metrics=[one])])
def test_a_missing_file_of_an_evaluator(cfg, wrap):
    cfg.val_evaluator = wrap(dict(cfg.val_evaluator, ann_file='data/coco/annotations/instances_val2017.json'))
    check_data(cfg, ['train_dataloader', 'test_dataloader'])
    refuse(
        cfg,
        'annotation file data/coco/annotations/instances_val2017.json (val_evaluator, CocoMetric) does not exist: give '
        'the evaluator the ann_file of its data set',
    )


def test_data_that_is_not_on_this_disk(cfg):
    cfg.train_dataloader.dataset.update(data_root='s3://bucket/coco')
    check_data(cfg, ['train_dataloader'])


@pytest.mark.parametrize('option', ['backend_args', 'file_client_args'])
def test_pictures_that_are_not_on_this_disk(cfg, option):
    """The annotations are on this disk, and are checked."""
    dataset = cfg.train_dataloader.dataset
    dataset.data_prefix.img = 'elsewhere'
    refuse(cfg, 'elsewhere (train_dataloader) does not exist')
    dataset.pipeline[0][option] = dict(backend='lmdb', db_path='pictures.lmdb')
    check_data(cfg, LOADERS)
    dataset.ann_file = 'annotations/other.json'
    refuse(cfg, 'other.json (train_dataloader) does not exist')


def test_a_missing_folder_of_a_set_that_names_no_files(cfg, tmp_path):
    cfg.default_scope = 'mmpretrain'
    cfg.train_dataloader.dataset = dict(type='ImageNet', data_root=str(tmp_path / 'imagenet'), split='train')
    refuse(
        cfg,
        f'data folder {tmp_path}/imagenet (train_dataloader) does not exist. '
        f'Link your copy: ln -sn /path/to/imagenet {tmp_path}/imagenet',
        ['train_dataloader'],
    )
