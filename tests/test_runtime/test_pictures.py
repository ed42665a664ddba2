import re
import sys

import cv2
import numpy as np
import pytest
from mmgroupnet_runtime import UserError
from mmgroupnet_runtime.pictures import find_pictures, read_picture
from PIL import Image

ORIENTATION = 0x0112  # the tag of EXIF


@pytest.fixture
def pixels():
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), (45, 31))
    return np.ascontiguousarray(smooth)


def test_pictures_of_files_and_folders(tmp_path):
    for name in ('b.PNG', 'a.jpg', 'notes.txt', 'c.webp', 'other/z.bmp', 'strange'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = [tmp_path / name for name in ('a.jpg', 'b.PNG', 'c.webp')]
    assert find_pictures([tmp_path / 'other', str(tmp_path), tmp_path / 'strange']) == [
        tmp_path / 'other/z.bmp',
        *folder,
        tmp_path / 'strange',
    ]


def test_no_pictures(tmp_path):
    with pytest.raises(UserError, match=re.escape(f'{tmp_path / "a"} is neither a picture nor a folder')):
        find_pictures([tmp_path / 'a'])
    with pytest.raises(UserError, match=rf'folder {re.escape(str(tmp_path))} holds no pictures \(.bmp, .jpeg'):
        find_pictures([tmp_path])


@pytest.mark.parametrize(
    ('mode', 'suffixes'),
    [
        ('RGB', ('.png', '.bmp', '.ppm', '.tif')),
        ('RGBA', ('.png', '.bmp')),  # not TIFF, since cv2 blends such a file with black, by its alpha channel
        ('L', ('.png', '.bmp', '.ppm', '.tif')),
        ('LA', ('.png',)),
        ('P', ('.png', '.bmp', '.tif')),
        ('1', ('.png', '.bmp', '.ppm', '.tif')),
        ('I;16', ('.png', '.ppm', '.tif')),
    ],
)
def test_pixels_are_those_of_cv2(tmp_path, pixels, mode, suffixes):
    image = Image.fromarray(pixels[..., ::-1])
    if mode == 'I;16':
        image = Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + pixels[..., 1])
    elif mode in ('RGBA', 'LA'):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    image = image.convert(mode)
    for suffix in suffixes:
        path = tmp_path / f'picture{suffix}'
        image.save(path)
        found = read_picture(path)
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, cv2.imread(str(path)), err_msg=suffix)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_jpegs_are_turned_as_cv2_turns_them(tmp_path, pixels, orientation):
    path = tmp_path / 'picture.jpg'
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels[..., ::-1]).save(path, exif=exif, quality=90)
    found = read_picture(path)
    assert found.shape == ((31, 45, 3) if orientation < 5 else (45, 31, 3))
    np.testing.assert_array_equal(found, cv2.imread(str(path)))


def test_damaged_exif_data_end_in_a_picture_or_a_sentence(tmp_path, pixels):
    path = tmp_path / 'picture.jpg'
    exif = Image.Exif()
    exif.update({ORIENTATION: 6, 0x010F: 'maker', 0x011A: 72.0, 0x0128: 2, 0x0132: '2026:11:30 00:00:00'})
    Image.fromarray(pixels).save(path, exif=exif)
    content = path.read_bytes()
    start, length = content.index(b'Exif'), len(exif.tobytes())
    for place in range(start, start + length):
        for value in (0, 1, 7, 12, 255):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                assert read_picture(path).shape in ((31, 45, 3), (45, 31, 3))
            except UserError as error:
                assert 'cannot read the picture' in str(error)


def test_a_grey_jpeg(tmp_path, pixels):
    path = tmp_path / 'picture.jpg'
    Image.fromarray(pixels[..., 0]).save(path)
    np.testing.assert_array_equal(read_picture(path), cv2.imread(str(path)))


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.webp'])
def test_damaged_pictures(tmp_path, pixels, suffix):
    path = tmp_path / f'picture{suffix}'
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b'no picture', b''):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f'cannot read the picture .*picture{suffix}: '):
            read_picture(path)


def test_no_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    with pytest.raises(UserError, match='read and drawn by Pillow, which is missing: `pip install pillow`'):
        read_picture(tmp_path / 'a.png')
