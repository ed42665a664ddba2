import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'cityscapes.py'
# 19 of the 34 label ids are used for training (Cordts et al., CVPR 2016): road, sidewalk, building, wall, fence, pole,
# light, sign, vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle.
EXPECTED = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
            28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def run(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, root, '--nproc', '1'], capture_output=True, text=True)


@pytest.fixture
def masks(tmp_path):
    """Two masks in Cityscapes' layout, the first with every id."""
    folders = [tmp_path / 'gtFine' / city for city in ('train/ulm', 'val/lindau')]
    paths = [folder / f'{folder.name}_000000_000019_gtFine_labelIds.png' for folder in folders]
    for path, mask in zip(paths, ([*range(34), 255, 255], [7] * 36), strict=True):
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.array(mask, np.uint8).reshape(6, 6))
    return paths


def test_every_id(masks, tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    assert '2 masks converted' in result.stdout
    first, second = (
        cv2.imread(str(path).replace('labelIds', 'labelTrainIds'), cv2.IMREAD_UNCHANGED).flatten() for path in masks
    )
    assert first.tolist() == [EXPECTED.get(label, 255) for label in range(34)] + [255, 255]
    assert second.tolist() == [0] * 36
    assert len(list(tmp_path.rglob('*.png'))) == 4  # no leftovers


def test_an_unknown_id_is_named_with_its_file(masks, tmp_path):
    cv2.imwrite(str(masks[1]), np.full((6, 6), 77, np.uint8))
    result = run(tmp_path)
    assert result.returncode == 1
    assert 'lindau_000000_000019_gtFine_labelIds.png: it holds the ids [77]' in result.stderr
    assert not list(tmp_path.rglob('lindau*labelTrainIds.png'))


def test_no_masks(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 1 and 'gtFine/SPLIT/CITY' in result.stderr
