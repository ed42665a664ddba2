"""Boxes around connected parts of masks, and the configs of the runs."""

import numpy as np
from mmengine.config import Config
from PIL import Image

from benchmarks import more_detection as benchmark
from benchmarks.more_detection import DETECTORS, SETS, Run, boxes_of_masks, config_of, results_table


def test_boxes_are_those_of_connected_pixels(tmp_path):
    mask = np.full((60, 90), 255, np.uint8)
    mask[2:22, 3:33] = 8  # a car of 30 x 20
    mask[30:51, 5:25] = 8  # another one of 20 x 21
    mask[30:49, 40:61] = 8  # one of 399 pixels, too small
    mask[30:51, 65:88] = 9  # a pedestrian
    Image.fromarray(mask).save(tmp_path / 'b.png')
    Image.fromarray(np.zeros((60, 90), np.uint8)).save(tmp_path / 'a.png')
    found = boxes_of_masks(tmp_path)
    assert [(image['file_name'], image['width'], image['height']) for image in found['images']] == [
        ('a.jpg', 90, 60),
        ('b.jpg', 90, 60),
    ]
    boxes = [(entry['image_id'], entry['category_id'], entry['bbox']) for entry in found['annotations']]
    assert boxes == [(1, 8, [3, 2, 30, 20]), (1, 8, [5, 30, 20, 21])]
    assert [entry['id'] for entry in found['annotations']] == [1, 2]  # pycocotools counts the id 0 as missed
    assert {entry['id'] for entry in found['categories']} >= {entry['category_id'] for entry in found['annotations']}


def test_every_run_has_a_config_of_its_set(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'WORK_DIR', tmp_path)
    for data in SETS:
        for detector in DETECTORS:
            cfg = Config.fromfile(config_of(Run(data, detector)))
            classes = cfg.train_dataloader.dataset.metainfo.classes
            assert cfg.test_dataloader.dataset.metainfo.classes == classes
            assert cfg.model.bbox_head.num_classes == len(classes)
            (flip,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomFlip')
            assert ('vertical' in flip.get('direction', [])) == (data != 'camvid_cars')  # a street has a top
            assert cfg.test_evaluator.ann_file.endswith(cfg.test_dataloader.dataset.ann_file)


def test_table():
    line = dict(data='red_cells', detector='binary', AP=0.5, AP50=0.8, AP_packed=0.4996, seconds=600)
    row = results_table([line]).splitlines()[-1]
    assert row == '| red blood cells (BCCD), one class | all binary | 0.500 | 0.800 | 0.500 | 10.0 min |'
