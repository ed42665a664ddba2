"""Boxes around connected parts of masks, and the configs of the runs."""

import numpy as np
from mmengine.config import Config
from PIL import Image

from benchmarks import more_detection as benchmark
from benchmarks.more_detection import DETECTORS, SETS, Run, boxes_of_masks, config_of, results_table


def test_boxes_are_those_of_connected_pixels(tmp_path):
    mask = np.full((40, 60), 255, np.uint8)
    mask[2:12, 3:23] = 8  # a car of 20 x 10
    mask[20:31, 5:17] = 8  # another one of 12 x 11
    mask[20:31, 30:41] = 9  # a pedestrian of 11 x 11
    mask[0:9, 50:60] = 6  # a sign of 90 pixels, too small
    mask[35:40, :] = 3  # road, not an object class
    Image.fromarray(mask).save(tmp_path / 'b.png')
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / 'a.png')
    found = boxes_of_masks(tmp_path)
    assert [(image['file_name'], image['width'], image['height']) for image in found['images']] == [
        ('a.jpg', 60, 40),
        ('b.jpg', 60, 40),
    ]
    boxes = [(entry['image_id'], entry['category_id'], entry['bbox']) for entry in found['annotations']]
    assert boxes == [(1, 8, [3, 2, 20, 10]), (1, 8, [5, 20, 12, 11]), (1, 9, [30, 20, 11, 11])]
    assert [entry['id'] for entry in found['annotations']] == [1, 2, 3]  # pycocotools counts the id 0 as missed
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
            assert ('vertical' in flip.get('direction', [])) == (data != 'camvid_objects')  # a street has a top
            assert cfg.test_evaluator.ann_file.endswith(cfg.test_dataloader.dataset.ann_file)


def test_table():
    line = dict(data='red_cells', detector='binary', AP=0.5, AP50=0.8, AP_packed=0.4996, seconds=600)
    row = results_table([line]).splitlines()[-1]
    assert row == '| red blood cells (BCCD), one class | all binary | 0.500 | 0.800 | 0.500 | 10.0 min |'
