from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmgroupnet.engine.drawing import (
    OutputFiles,
    build_visualizer,
    common_folder,
    decode,
    draw,
    image_folder,
    make_folder,
    names_and_colours,
)
from mmgroupnet.errors import UserError


@pytest.mark.parametrize(
    ('picture', 'expected'),
    [
        ('/data/images/a.jpg', 'a.jpg'),
        ('/data/images/a.png', 'a.png'),
        ('/data/images/x/y/a.png', 'x/y/a.png'),
        ('/data/images/../other/a.png', 'data/other/a.png'),
        ('/data/images/.hidden.png', '.hidden.png'),
        ('/data/images/.png', '.png.png'),
        ('/data/images/two words.v1.2.JPG', 'two words.v1.2.JPG'),
        ('/data/images/grün.png', 'grün.png'),
        ('/data/images/scan', 'scan.png'),
        ('/data/images/volume.nii.gz', 'volume.nii.gz.png'),
        ('s3://bucket/images/a.png', 'bucket/images/a.png'),
    ],
)
def test_names(picture, expected):
    assert OutputFiles('out', '/data/images').path_of(picture) == Path('out') / expected


def test_no_name_is_given_twice_and_each_picture_keeps_its_own():
    files = OutputFiles('out', '/data')
    pictures = ['/data/scan', '/data/scan.png', '/data/scan', '/data/scan.png', 's3://scan.png']
    assert [files.path_of(picture).name for picture in pictures] == [
        'scan.png',
        'scan_2.png',
        'scan.png',
        'scan_2.png',
        'scan_3.png',
    ]


def test_paths_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert OutputFiles('out', 'data').path_of('data/x/a.png') == Path('out/x/a.png')
    assert OutputFiles('out', '').path_of('data/x/a.png') == Path('out/data/x/a.png')


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (dict(data_root='d', data_prefix=dict(img='images/')), 'd/images/'),
        (dict(data_root='d', data_prefix=dict(img_path='img', seg_map_path='mask')), 'd/img'),
        (dict(data_root='d', data_prefix=dict(sub_data_root='VOC2007/')), 'd/'),
        (dict(data_root='d', data_prefix='train'), 'd/train'),
        (dict(data_prefix=dict(img='/images')), '/images'),
        (dict(data_root='d', data_prefix=None), 'd/'),
        (dict(), ''),
    ],
)
def test_folder_of_a_data_set(dataset, expected):
    assert image_folder(dataset) == expected


def test_common_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common_folder(['data/a', 'data/b/c']) == str(tmp_path / 'data')
    assert common_folder(['']) == common_folder([]) == str(tmp_path)


def test_decode():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (decode(cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()) == pixels).all()
    assert decode(b'') is None
    assert decode(b'no picture') is None
    assert decode(cv2.imencode('.png', pixels)[1].tobytes()[:-20]) is None


def test_classes_may_be_a_file_of_names(tmp_path):
    (tmp_path / 'names.txt').write_text('red\nblue\n')
    dataset = dict(type='CocoDataset', metainfo=dict(classes=str(tmp_path / 'names.txt')))
    assert names_and_colours('mmdet', 'mmdet', dataset, {})['classes'] == ['red', 'blue']
    assert names_and_colours('mmdet', 'mmdet', dataset, dict(CLASSES=('a', 'b')))['classes'] == ('a', 'b')


@pytest.mark.parametrize('palette', [[[200, 0, 0], [0, 0, 200]], np.array([[200, 0, 0], [0, 0, 200]])])
def test_colours_may_be_lists_and_arrays(tmp_path, palette):
    cfg = Config(dict(default_scope='mmdet'))
    meta = names_and_colours('mmdet', 'mmdet', dict(type='CocoDataset'), dict(classes=('a', 'b'), palette=palette))
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[5.0, 5.0, 30.0, 30.0]]), scores=torch.ones(1), labels=torch.ones(1, dtype=torch.long)
    )
    visualizer = build_visualizer(cfg, 'mmdet', meta)
    draw(visualizer, 'mmdet', np.zeros((40, 60, 3), np.uint8), sample, tmp_path / 'a.png', draw_gt=False)
    blue, _, red = cv2.imread(str(tmp_path / 'a.png'))[26:34, 20:28].max(axis=(0, 1))  # The lower right edges.
    assert blue > 100 and red == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    make_folder(tmp_path / 'a/b')
    make_folder(tmp_path / 'a/b')
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='folder .*file/vis for drawn pictures cannot be made: Not a directory'):
        make_folder(tmp_path / 'file/vis')
