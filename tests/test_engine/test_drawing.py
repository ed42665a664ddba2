import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmgroupnet.engine.drawing import build_visualizer, draw, names_and_colours


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
    blue, _, red = cv2.imread(str(tmp_path / 'a.png'))[26:34, 20:28].max(axis=(0, 1))  # Lower right edges of the box.
    assert blue > 100 and red == 0
