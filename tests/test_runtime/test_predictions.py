import json

import numpy as np
import pytest
from mmgroupnet_runtime import Classification, Detections, Segmentation, UserError, load
from mmgroupnet_runtime.predictions import PredictionsFile, entries, summary

from tests.onnx_models import CLASSIFIER, write_onnx

DETECTIONS = Detections(
    np.array([[1, 2, 3.14159, 4], [0, 0, 9, 9]], np.float32), np.array([2, 0]), np.array([0.98768, 0.31], np.float32)
)
SEGMENTATION = Segmentation(np.array([[2, 2, 2], [2, 0, 2]], np.uint8), None)
CLASSIFICATION = Classification(np.array([0.1, 0.05, 0.85], np.float32))
NAMES = ['blue', 'green', 'red']


@pytest.fixture
def model(tmp_path):
    return load(write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification', classes=['ä', 'b', 'c']))


def test_entries_come_from_the_greatest_on():
    assert entries(DETECTIONS, NAMES) == [
        {'class': 'red', 'label': 2, 'score': 0.9877, 'box': [1, 2, 3.14, 4]},
        {'class': 'blue', 'label': 0, 'score': 0.31, 'box': [0, 0, 9, 9]},
    ]
    assert entries(SEGMENTATION, NAMES) == [
        {'class': 'red', 'label': 2, 'share': 0.8333},
        {'class': 'blue', 'label': 0, 'share': 0.1667},
    ]
    assert entries(CLASSIFICATION, NAMES) == [
        {'class': 'red', 'label': 2, 'score': 0.85},
        {'class': 'blue', 'label': 0, 'score': 0.1},
        {'class': 'green', 'label': 1, 'score': 0.05},
    ]


def test_classes_without_names():
    assert [entry['class'] for entry in entries(SEGMENTATION, None)] == ['class 2', 'class 0']
    assert [entry['class'] for entry in entries(SEGMENTATION, ['blue'])] == ['class 2', 'blue']


@pytest.mark.parametrize(
    ('answer', 'score_thr', 'text'),
    [
        (DETECTIONS, 0.3, '2 detections: red 0.99, blue 0.31'),
        (DETECTIONS, 0.5, '1 detection: red 0.99'),
        (DETECTIONS, 1.0, '0 detections'),
        (SEGMENTATION, 0.3, 'red 83.3%, blue 16.7%'),
        (CLASSIFICATION, 0.3, 'red 0.85, blue 0.10, green 0.05'),
        (
            Classification(np.arange(7, dtype=np.float32)),
            0.3,
            'class 6 6.00, class 5 5.00, class 4 4.00, class 3 3.00, red 2.00, ...',
        ),
    ],
)
def test_summaries(answer, score_thr, text):
    assert summary(answer, NAMES, score_thr) == text


def test_the_predictions_file(tmp_path, model):
    path = tmp_path / 'new' / 'predictions.npz'
    answers = [
        DETECTIONS,
        SEGMENTATION,
        Segmentation(SEGMENTATION.classes, np.ones((3, 2, 3), np.float32)),
        CLASSIFICATION,
    ]
    with PredictionsFile(path, model) as predictions:
        for name, answer in zip(('ü.png', 'b.jpg', 'c.jpg', 'd.jpg'), answers, strict=True):
            predictions.add(name, answer)
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ['predictions.npz']
    with np.load(path) as file:  # By default np.load refuses pickled objects.
        content = dict(file)
    assert content.pop('names').tolist() == ['ü.png', 'b.jpg', 'c.jpg', 'd.jpg']
    assert json.loads(content.pop('metadata').item()) == model.metadata
    expected = dict(
        boxes_0=DETECTIONS.boxes,
        labels_0=DETECTIONS.labels,
        scores_0=DETECTIONS.scores,
        classes_1=SEGMENTATION.classes,
        classes_2=SEGMENTATION.classes,
        scores_2=answers[2].scores,
        scores_3=CLASSIFICATION.scores,
    )
    assert content.keys() == expected.keys()
    for key, values in expected.items():
        assert content[key].dtype == values.dtype
        np.testing.assert_array_equal(content[key], values)


def test_an_error_leaves_the_older_file(tmp_path, model):
    path = tmp_path / 'predictions.npz'
    path.write_text('older')
    with pytest.raises(UserError, match='a damaged picture'), PredictionsFile(path, model) as predictions:
        predictions.add('a.png', CLASSIFICATION)
        raise UserError('a damaged picture')
    assert path.read_text() == 'older'
    assert {file.name for file in tmp_path.iterdir()} == {'model.onnx', 'predictions.npz'}
