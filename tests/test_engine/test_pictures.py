from pathlib import Path

import cv2
import numpy as np
import pytest

from mmgroupnet.engine.pictures import OutputFiles, common_folder, decode, image_folder, make_folder
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


def test_a_folder_that_cannot_be_made(tmp_path):
    make_folder(tmp_path / 'a/b')
    make_folder(tmp_path / 'a/b')
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='folder .*file/vis for drawn pictures cannot be made: Not a directory'):
        make_folder(tmp_path / 'file/vis')
