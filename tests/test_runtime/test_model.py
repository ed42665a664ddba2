import re

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmdet.structures.bbox import scale_boxes
from mmgroupnet_runtime import Classification, Detections, Segmentation, UserError, __version__, load

import mmgroupnet.version
from tests.onnx_models import CLASSIFIER, DETECTOR, MAPS, SEGMENTOR, write_onnx

RESIZE = dict(type='resize', width=32, height=24, keep_ratio=True)
BOXES = np.array([[4, 2.5, 10, 20.25], [0.5, 1, 30, 13]], np.float32)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def model_of(tmp_path, body, task, **options):
    return load(write_onnx(tmp_path / 'model.onnx', body, task, **options), threads=1)


def test_the_version_is_that_of_mmgroupnet():
    assert __version__ == mmgroupnet.version.__version__


def test_what_a_model_knows_of_itself(tmp_path):
    model = model_of(tmp_path, CLASSIFIER, 'classification', palette=[[1, 2, 3]] * 3)
    assert model.task == 'classification'
    assert model.classes == ['blue', 'green', 'red']
    assert model.palette == [[1, 2, 3]] * 3
    assert model.metadata['format'] == 1
    assert isinstance(model.session, onnxruntime.InferenceSession)
    assert model.session.get_session_options().intra_op_num_threads == 1
    assert model.session.get_providers() == ['CPUExecutionProvider']


def test_a_classifier(tmp_path):
    model = model_of(tmp_path, CLASSIFIER, 'classification', resize=[dict(type='center_crop', width=2, height=2)])
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1:3, 2:4] = [10, 20, 30]
    answer = model(picture)
    assert isinstance(answer, Classification)
    assert answer.scores.dtype == np.float32
    np.testing.assert_array_equal(answer.scores, [10, 20, 30])


@pytest.mark.parametrize('keep_ratio', [True, False])
def test_boxes_are_those_that_mmdet_brings_back_to_the_picture(tmp_path, picture, keep_ratio):
    resize = {**RESIZE, 'keep_ratio': keep_ratio}
    answer = model_of(tmp_path, DETECTOR, 'detection', resize=[resize])(picture)
    assert isinstance(answer, Detections)
    results = Resize((32, 24), keep_ratio=keep_ratio)(dict(img=picture))
    expected = scale_boxes(torch.from_numpy(BOXES), [1 / factor for factor in results['scale_factor']])
    assert answer.boxes.dtype == np.float32
    np.testing.assert_array_equal(answer.boxes, expected.numpy())
    # The row that pads the batch is left out.
    np.testing.assert_array_equal(answer.labels, np.array([1, 0]))
    np.testing.assert_array_equal(answer.scores, np.array([0.875, 0.25], np.float32))


def test_boxes_of_a_picture_that_is_not_resized(tmp_path, picture):
    np.testing.assert_array_equal(model_of(tmp_path, DETECTOR, 'detection')(picture).boxes, BOXES)


def test_a_segmentor_answers_in_the_size_of_the_picture(tmp_path, picture):
    model = model_of(tmp_path, SEGMENTOR, 'segmentation', resize=[RESIZE])
    answer = model(picture)
    assert isinstance(answer, Segmentation)
    assert (answer.classes.dtype, answer.classes.shape) == (np.uint8, (37, 51))
    assert (answer.scores.dtype, answer.scores.shape) == (np.float32, (3, 37, 51))
    np.testing.assert_array_equal(answer.classes, answer.scores.argmax(axis=0))
    expected = torch.from_numpy(Resize((32, 24), keep_ratio=True)(dict(img=picture))['img']).permute(2, 0, 1).float()
    expected = torch.nn.functional.interpolate(expected[None], (37, 51), mode='bilinear', align_corners=False)[0]
    np.testing.assert_allclose(answer.scores, expected.numpy(), atol=1e-3)


def test_a_segmentor_without_scores(tmp_path, picture):
    body = SEGMENTOR.replace('classes, float[N, 3, A, B] scores)', 'classes)')
    answer = model_of(tmp_path, body, 'segmentation')(picture)
    np.testing.assert_array_equal(answer.classes, picture.argmax(axis=2))
    assert answer.scores is None


def test_a_prepared_picture_gives_the_same_answer(tmp_path, picture):
    model = model_of(tmp_path, SEGMENTOR, 'segmentation', resize=[RESIZE])
    image = model.prepare(picture)
    assert image.shape == (23, 32, 3)
    np.testing.assert_array_equal(model.answer(image, (37, 51)).classes, model(picture).classes)


def test_a_batch_is_run_without_the_resize_rule(tmp_path, picture):
    images = np.stack([picture, 255 - picture])
    classifier = model_of(tmp_path, CLASSIFIER, 'classification', resize=[RESIZE])
    outputs = classifier.run(images)
    assert list(outputs) == ['scores']
    np.testing.assert_allclose(outputs['scores'], images.mean(axis=(1, 2)), rtol=1e-5)
    segmentor = model_of(tmp_path, SEGMENTOR, 'segmentation', resize=[RESIZE])
    np.testing.assert_array_equal(segmentor.run(images)['classes'], images.argmax(axis=3))
    outputs = segmentor.run(images, size=(5, 7))
    assert {name: output.shape for name, output in outputs.items()} == dict(classes=(2, 5, 7), scores=(2, 3, 5, 7))


def test_maps_are_run_but_no_answer(tmp_path, picture):
    model = model_of(tmp_path, MAPS, 'maps')
    np.testing.assert_array_equal(model.run(picture[None])['map_0'], picture[None])
    with pytest.raises(UserError, match=r'exported with --raw, .* call model.run\(images\)'):
        model(picture)


def test_a_file_without_a_resize_rule(tmp_path, picture):
    model = model_of(tmp_path, CLASSIFIER, 'classification', resize=None)
    with pytest.raises(UserError, match='the file does not say how pictures are resized: resize them as the test'):
        model(picture)
    np.testing.assert_allclose(model.answer(picture, (37, 51)).scores, picture.mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ('picture', 'found'),
    [
        ([[[0, 0, 0]]], 'picture is a list'),
        (np.zeros((5, 6, 3), np.float32), 'picture is a float32 array of the shape (5, 6, 3)'),
        (np.zeros((5, 6), np.uint8), 'picture is a uint8 array of the shape (5, 6)'),
        (np.zeros((5, 6, 4), np.uint8), 'picture is a uint8 array of the shape (5, 6, 4)'),
        (np.zeros((1, 5, 6, 3), np.uint8), 'picture is a uint8 array of the shape (1, 5, 6, 3)'),
        (np.zeros((0, 6, 3), np.uint8), 'picture is a uint8 array of the shape (0, 6, 3)'),
    ],
)
def test_pictures_of_another_type_or_shape(tmp_path, picture, found):
    model = model_of(tmp_path, CLASSIFIER, 'classification')
    allowed = ': a uint8 array (height, width, 3) is needed, BGR, as cv2.imread gives it'
    with pytest.raises(UserError, match=re.escape(found + allowed)):
        model(picture)


def test_images_of_another_type_or_shape(tmp_path, picture):
    model = model_of(tmp_path, CLASSIFIER, 'classification')
    with pytest.raises(UserError, match=r'images is a uint8 array of the shape \(37, 51, 3\): a uint8 array \(N, '):
        model.run(picture)
    with pytest.raises(UserError, match=re.escape('image is a float64 array of the shape (37, 51, 3): a uint8 ')):
        model.answer(picture / 255, (37, 51))


@pytest.mark.parametrize('size', [(5,), (5, 0), (5.5, 6), 'ab', (5, 6, 3), 7])
def test_sizes_that_are_none(tmp_path, picture, size):
    model = model_of(tmp_path, SEGMENTOR, 'segmentation')
    with pytest.raises(UserError, match=re.escape(f'size={size!r}: height and width are needed')):
        model.run(picture[None], size)


def test_sizes_are_for_segmentation(tmp_path, picture):
    model = model_of(tmp_path, CLASSIFIER, 'classification')
    with pytest.raises(UserError, match=re.escape("size=(5, 6): a model of the task 'classification' takes no size")):
        model.run(picture[None], (5, 6))


def test_a_network_that_fails_on_a_picture(tmp_path, picture):
    body = """(uint8[N, H, W, 3] image) => (uint8[N, 8, 8, 3] scores) {
        shape = Constant<value_ints = [1, 8, 8, 3]>()
        scores = Reshape(image, shape)
    }"""
    model = model_of(tmp_path, body, 'classification')
    with pytest.raises(UserError, match=r'the network fails on images of the shape \(1, 37, 51, 3\): .*Reshape'):
        model(picture)


@pytest.mark.parametrize('threads', [0, -1, 257, 1.5, '2', True])
def test_numbers_of_threads(tmp_path, threads):
    with pytest.raises(UserError, match=re.escape(f'threads={threads!r}: give an integer from 1 to 256, or None')):
        load(tmp_path / 'model.onnx', threads)


def test_a_graph_that_onnxruntime_refuses(tmp_path):
    path = write_onnx(tmp_path / 'model.onnx', CLASSIFIER.replace('ReduceMean<', 'ReduceMedian<'), 'classification')
    version = re.escape(onnxruntime.__version__)
    with pytest.raises(UserError, match=rf'onnxruntime {version} refuses .*model.onnx: copy it again.*ReduceMedian'):
        load(path)


BINARY = '"" : 18, "mmgroupnet" : 1'


def test_a_binary_network_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr('mmgroupnet_runtime.machine._LIBRARY', tmp_path / 'lib.so')
    path = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification', opsets=BINARY)
    with pytest.raises(UserError, match="library of mmgroupnet's operators, is missing: run `make runtime`"):
        load(path)
    # A float model needs no library.
    assert model_of(tmp_path, CLASSIFIER, 'classification').task == 'classification'


def test_a_binary_network_with_the_library_of_another_machine(tmp_path, monkeypatch):
    library = tmp_path / 'lib.so'
    library.write_bytes(b'\x7fELF' + bytes(60))
    monkeypatch.setattr('mmgroupnet_runtime.machine._LIBRARY', library)
    path = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification', opsets=BINARY)
    with pytest.raises(UserError, match='onnxruntime .* on .* refuses .*lib.so: install the wheel of this machine'):
        load(path)
