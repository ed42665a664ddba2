"""Predictions on pictures of all kinds and names, with typical configs; test_libraries.py tests all libraries."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.engine import prediction
from mmgroupnet.engine.pictures import find_images
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run

NAMES = ['a.jpg', 'a.png', 'sub/a.png', 'sub/deep/a.png', '.hidden.png', 'with space.v1.0.PNG', 'grün.png', 'b.tiff']


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The folder of a tiny run with a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('prediction')
    cfg = load_tiny_run(folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(classes=('red', 'blue')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'weights.pth')
    return folder


def write(folder: Path, names: list[str], pixels: np.ndarray | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((48, 64, 3), 90, np.uint8) if pixels is None else pixels)
    return folder


def predict(trained: Path, cfg: Config, folder: Path, out: Path) -> Path:
    return draw_on_pictures(cfg, trained / 'weights.pth', find_images(folder), out, device='cpu', root=folder)


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_every_picture_has_a_file_of_its_name(trained, tmp_path):
    folder = write(tmp_path / 'pictures', NAMES)
    drawn = predict(trained, load_tiny_run(trained), folder, tmp_path)
    assert drawn == tmp_path / 'vis'
    assert names_in(drawn) == sorted(NAMES)
    assert all(cv2.imread(str(drawn / name)).shape == (48, 64, 3) for name in NAMES)


def test_pictures_of_every_depth(trained, tmp_path):
    folder = tmp_path / 'pictures'
    write(folder, ['grey.png'], np.full((48, 64), 90, np.uint8))
    write(folder, ['alpha.png'], np.full((48, 64, 4), 90, np.uint8))
    write(folder, ['deep.png'], np.full((48, 64, 3), 90 * 257, np.uint16))
    drawn = predict(trained, load_tiny_run(trained, model__test_cfg__score_thr=2.0), folder, tmp_path)
    for name in ('grey', 'alpha', 'deep'):
        assert (cv2.imread(str(drawn / f'{name}.png'), cv2.IMREAD_UNCHANGED) == np.full((48, 64, 3), 90)).all()


def test_unreadable_pictures_are_named_and_the_others_drawn(trained, tmp_path):
    folder = write(tmp_path / 'pictures', ['a.png', 'z.png'])
    (folder / 'cut.png').write_bytes((folder / 'a.png').read_bytes()[:40])
    (folder / '._a.png').write_bytes(b'Mac OS X resource fork')
    (folder / 'empty.png').touch()
    (folder / 'gone.png').symlink_to('nowhere.png')
    with pytest.raises(UserError, match='^4 of 6 pictures cannot be read: .*; the others are in ') as error:
        predict(trained, load_tiny_run(trained), folder, tmp_path)
    assert all(name in str(error.value) for name in ('cut.png', '._a.png', 'empty.png', 'gone.png'))
    assert names_in(tmp_path / 'vis') == ['a.png', 'z.png']


@pytest.mark.parametrize('kind', ['concatenated', 'repeated', 'classes', 'no test data', 'no visualizer', 'dumped'])
def test_configs_as_people_write_them(trained, tmp_path, kind):
    cfg = load_tiny_run(trained)
    plain = cfg.test_dataloader.dataset
    if kind == 'concatenated':
        cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[plain, plain])
    elif kind == 'repeated':
        cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=plain)
    elif kind == 'classes':
        cfg.test_dataloader.dataset = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=plain)
    elif kind == 'no test data':
        cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    elif kind == 'no visualizer':
        cfg.pop('visualizer')
    else:
        cfg.dump(tmp_path / 'dumped.py')
        cfg = Config.fromfile(tmp_path / 'dumped.py')
    drawn = predict(trained, cfg, write(tmp_path / 'pictures', ['a.png']), tmp_path)
    assert names_in(drawn) == ['a.png']


def test_the_same_predictions_as_in_a_test(trained, tmp_path):
    """The config's own pipeline reads and resizes the pictures; the drawn files equal those of mmdet's inferencer."""
    from mmdet.apis import DetInferencer

    folder = write(tmp_path / 'pictures', ['a.png'])
    cv2.rectangle(pixels := cv2.imread(str(folder / 'a.png')), (10, 10), (30, 30), (20, 20, 230), -1)
    cv2.imwrite(str(folder / 'a.png'), pixels)
    drawn = draw_on_pictures(
        load_tiny_run(trained), trained / 'weights.pth', find_images(folder), tmp_path, score_thr=0.0, device='cpu'
    )
    inferencer = DetInferencer(load_tiny_run(trained), str(trained / 'weights.pth'), 'cpu', show_progress=False)
    inferencer(str(folder / 'a.png'), out_dir=str(tmp_path / 'expected'), pred_score_thr=0.0)
    expected = cv2.imread(str(tmp_path / 'expected/vis/a.png'))
    assert (cv2.imread(str(drawn / 'a.png')) == expected).all()
    assert (expected != pixels).any()


def test_misuse(trained, tmp_path):
    folder = write(tmp_path / 'vis', ['a.png'])
    before = (folder / 'a.png').read_bytes()
    with pytest.raises(UserError, match='the drawn picture would replace .*a.png, give another folder'):
        predict(trained, load_tiny_run(trained), folder, tmp_path)
    assert (folder / 'a.png').read_bytes() == before
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty holds no pictures'):
        find_images(tmp_path / 'empty')
    cfg = load_tiny_run(trained, test_dataloader=None, val_dataloader=None)
    with pytest.raises(UserError, match='no test_dataloader or val_dataloader whose data set has a pipeline'):
        predict(trained, cfg, folder, tmp_path / 'out')


def test_a_reader_that_fails_leaves_its_traceback(trained, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(prediction, 'print_log', lambda text, *_: lines.append(text))
    cfg = load_tiny_run(trained)
    cfg.test_dataloader.dataset.pipeline[0].imdecode_backend = 'other'
    with pytest.raises(UserError, match=r"^1 of 1 pictures cannot be read: '[^;]*a.png'$"):
        predict(trained, cfg, write(tmp_path / 'pictures', ['a.png']), tmp_path)
    assert 'Traceback' in lines[0] and 'backend: other is not supported' in lines[0]


def test_devices_that_are_not_there(trained, tmp_path):
    folder = write(tmp_path / 'pictures', ['a.png'])
    with pytest.raises(UserError, match='^--device cud cannot be used: RuntimeError: Expected one of cpu, cuda'):
        draw_on_pictures(load_tiny_run(trained), trained / 'weights.pth', find_images(folder), tmp_path, device='cud')


def test_what_was_drawn_before_is_no_input(tmp_path):
    write(tmp_path, ['a.png', 'out/vis/a.png', 'visits/b.png'])
    found = [str(Path(path).relative_to(tmp_path)) for path in find_images(tmp_path, tmp_path / 'out')]
    assert found == ['a.png', 'visits/b.png']
