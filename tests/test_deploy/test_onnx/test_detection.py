"""Detectors exported as one graph give the results of their own ``predict``."""

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import FCOSHead

from mmgroupnet.deploy.onnx import export
from mmgroupnet.deploy.onnx.graph import Graph
from mmgroupnet.errors import UserError
from tests.onnx_files import (
    FCOS,
    GFL,
    HEADS,
    RETINA,
    assert_detections,
    detect,
    detector,
    pictures,
    run,
)


def answer(model, images) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of the graph, computed by torch."""
    with torch.no_grad():
        return tuple(output.numpy() for output in Graph(model)(torch.from_numpy(images)))


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    'test_cfg',
    [
        {},
        dict(nms_pre=7),
        dict(nms_pre=1, max_per_img=1),
        dict(max_per_img=3),
        dict(max_per_img=1000, nms_pre=1000),
        dict(nms=dict(type='nms', iou_threshold=0.2, class_agnostic=True)),
        dict(nms=dict(type='nms', iou_threshold=0.8, split_thr=10)),
        dict(min_bbox_size=30),
        dict(min_bbox_size=-1),
        dict(score_thr=0.0),
        dict(score_thr=0.52),
    ],
    ids=str,
)
def test_the_answer_is_that_of_predict(head, test_cfg):
    model = detector(head, test_cfg)
    images = pictures()
    assert_detections(*answer(model, images), detect(model, images))


def test_options_that_mmdet_takes_defaults_for():
    model = detector(FCOS)
    del model.bbox_head.test_cfg['score_thr'], model.bbox_head.test_cfg['min_bbox_size']
    images = pictures()
    assert_detections(*answer(model, images), detect(model, images))


def test_boxes_are_cut_at_the_picture_not_at_its_padding():
    model = detector(FCOS, dict(max_per_img=1000))
    images = pictures(1, 33, 49)  # padded to 48 x 64
    boxes = answer(model, images)[0]
    assert boxes[..., 3].max() == 33


def test_boxes_that_are_not_cut_reach_beyond_the_picture():
    model = detector(FCOS | dict(bbox_coder=dict(type='DistancePointBBoxCoder', clip_border=False)))
    images = pictures()
    expected = detect(model, images)
    assert max(boxes.max() for boxes, _ in expected) > 90
    assert_detections(*answer(model, images), expected)


def test_pictures_without_detections():
    model = detector(FCOS, dict(score_thr=1.0))
    dets, labels = answer(model, pictures())
    assert dets.shape == (2, 0, 5) and labels.shape == (2, 0)


def test_pictures_with_fewer_detections_end_in_empty_rows():
    model = detector(FCOS, dict(max_per_img=1000))
    images = pictures()
    images[0] //= 3  # Gives fewer detections.
    expected = detect(model, images)
    assert len(expected[0][1]) != len(expected[1][1])
    assert_detections(*answer(model, images), expected)


@pytest.fixture(scope='module', params=HEADS)
def exported(request, tmp_path_factory):
    """A detector and its file."""
    model = detector(HEADS[request.param])
    path = tmp_path_factory.mktemp('detection') / f'{request.param}.onnx'
    export(model, path)
    return model, path


@pytest.mark.slow  # an export takes many seconds; the test of the binary detector's file is not slow
@pytest.mark.parametrize('shape', [(1, 61, 90), (3, 128, 96), (2, 33, 49)], ids=str)
def test_the_file_gives_the_answer_of_predict(exported, shape):
    model, path = exported
    images = pictures(*shape)
    found = run(path, image=images)
    assert found['dets'].dtype == np.float32 and found['labels'].dtype == np.int64
    assert_detections(found['dets'], found['labels'], detect(model, images))


@pytest.mark.slow
def test_the_file_finds_nothing_where_there_is_nothing(tmp_path):
    model = detector(FCOS, dict(score_thr=1.0))
    export(model, tmp_path / 'none.onnx')
    found = run(tmp_path / 'none.onnx', image=pictures())
    assert found['dets'].shape == (2, 0, 5) and found['labels'].shape == (2, 0)


def test_a_binary_detector_gives_the_answer_of_predict(written):
    model, _, path = written
    for shape in ((1, 61, 90), (3, 128, 96)):
        images = pictures(*shape)
        found = run(path, image=images)
        assert_detections(found['dets'], found['labels'], detect(model, images))


def refused(model, **options) -> str:
    with pytest.raises(UserError) as caught:
        Graph(model, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ('test_cfg', 'sentence'),
    [
        (dict(nms=dict(type='soft_nms', iou_threshold=0.5)), "test_cfg.nms={'type': 'soft_nms', 'iou_threshold': 0.5}"),
        (dict(nms=dict(type='nms', iou_threshold=0.5, max_num=3)), 'test_cfg.nms='),
        (dict(nms=dict(type='nms')), "test_cfg.nms={'type': 'nms'}: "),
        (dict(nms_pre=-1), 'test_cfg.nms_pre=-1: the graph takes a number of at least 1'),
        (dict(max_per_img=-1), 'test_cfg.max_per_img=-1: the graph takes a number of at least 1'),
        (dict(multi_label=True), 'test_cfg.multi_label: the graph supports score_thr, nms_pre'),
    ],
    ids=str,
)
def test_options_of_the_answer_that_are_not_covered(test_cfg, sentence):
    assert refused(detector(FCOS, test_cfg)).startswith(sentence)


def test_so_many_candidates_that_mmcv_forgets_class_agnostic():
    def options(split_thr):
        return dict(nms=dict(type='nms', iou_threshold=0.2, class_agnostic=True, **split_thr))

    assert refused(detector(FCOS, options(dict(split_thr=120)))) == (
        'test_cfg.nms.split_thr=120: mmcv ignores class_agnostic for that many candidates or more, the graph does not, '
        'and a picture may have 120 (nms_pre=60 of each of 2 levels): give split_thr=121 or more'
    )
    assert refused(detector(FCOS, options({}) | dict(nms_pre=5000))).startswith('test_cfg.nms.split_thr=10000: ')
    model = detector(FCOS, options(dict(split_thr=121)))
    images = pictures()
    assert_detections(*answer(model, images), detect(model, images))


def test_detectors_without_test_cfg_are_refused():
    model = detector(FCOS)
    model.bbox_head.test_cfg = None
    assert refused(model) == 'test_cfg=None: decoding needs nms_pre, nms and max_per_img'


def test_a_head_with_a_decoding_of_its_own_is_refused():
    model = detector(FCOS)

    class Own(FCOSHead):
        def _bbox_post_process(self, *args, **kwargs):
            return super()._bbox_post_process(*args, **kwargs)

    model.bbox_head.__class__ = Own
    assert refused(model) == (
        'bbox_head=Own has its own _bbox_post_process: export its maps (--raw; raw=True) and decode them yourself'
    )


def test_a_method_of_the_instance_counts():
    model = detector(GFL)
    model.bbox_head.anchor_center = lambda anchors: anchors[..., :2]
    assert refused(model).startswith('bbox_head=GFLHead has its own anchor_center: ')


def test_other_coders_are_refused():
    model = detector(RETINA)
    model.bbox_head.bbox_coder.add_ctr_clamp = True
    assert refused(model).startswith('bbox_coder=DeltaXYWHBBoxCoder: the graph decodes DistancePointBBoxCoder and ')


def test_detectors_of_two_stages_are_refused():
    model = detector(FCOS)
    two_stage = torch.nn.Module()
    two_stage.data_preprocessor = model.data_preprocessor
    two_stage.__class__ = type('FasterRCNN', (torch.nn.Module,), {})
    assert refused(two_stage) == (
        'model=FasterRCNN: the exporter supports only one-stage detectors with dense heads (FCOS, ATSS, RetinaNet, '
        'GFL): export its maps (--raw; raw=True) and decode them yourself'
    )


@pytest.mark.parametrize('clip_border', [True, False])
def test_sides_are_limited_as_by_the_coder(clip_border):
    """The logarithms of some sides exceed mmdet's limit of log(1000 / 16)."""
    coder = dict(RETINA['bbox_coder'], clip_border=clip_border)
    model = detector(RETINA | dict(bbox_coder=coder), dict(max_per_img=1000))
    images = pictures()
    model.bbox_head.retina_reg.weight.data *= 50
    expected = detect(model, images)
    assert any(len(boxes) for boxes, _ in expected)
    sides = np.concatenate([boxes[:, 2:4] - boxes[:, :2] for boxes, _ in expected])
    assert (sides < 1).any()
    assert_detections(*answer(model, images), expected)
