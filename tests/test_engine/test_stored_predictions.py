"""Predictions stored on a device: they give the same metrics as the model, and unsuitable files are refused."""

import json
import pickle

import numpy as np
import pytest
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS
from mmgroupnet_runtime.cli import main
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from mmgroupnet.engine import stored_predictions
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.engine.testing import run_test
from mmgroupnet.errors import UserError
from tests.onnx_models import TWO_CLASSES, write_onnx
from tests.test_engine.test_libraries import BACKBONE, CLASSIFIER
from tests.tiny_run import load_tiny_run, write_tiny_run

CLASSES = ['red', 'blue']
NAMES = ['8.png', '9.png', '10.png', '11.png']


def write(path, names=NAMES, task='detection', classes=CLASSES, **arrays):
    """Writes a file of predictions. For detection, pictures without given arrays get one box."""
    for index in range(len(names)) if task == 'detection' else ():
        box = np.array([[index, 2, 30, 40]], np.float32)
        for key, array in dict(boxes=box, labels=np.array([1]), scores=np.array([0.5], np.float32)).items():
            arrays.setdefault(f'{key}_{index}', array)
    text = json.dumps(dict(task=task, classes=classes, palette=None))
    np.savez(path, names=np.array(names, dtype=str), metadata=text, **arrays)
    return str(path)


def build(file):
    return MODELS.build(dict(type='mmgroupnet.StoredPredictions', file=file))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('npz')
    write_tiny_run(folder)
    return folder


class TestRuns:
    def test_the_same_as_the_model_that_predicted(self, tiny, tmp_path):
        model = str(write_onnx(tmp_path / 'model.onnx', TWO_CLASSES['detection'], 'detection', classes=CLASSES))
        stored = str(tmp_path / 'stored.npz')
        images = [str(tiny / 'data/images' / name) for name in reversed(NAMES)]  # not in the order of the data set
        main([model, *images, '--npz', stored])
        predictions = []
        for source in (model, stored):
            run_test(load_tiny_run(tiny), source, out=str(tmp_path / 'out.pkl'))
            with open(tmp_path / 'out.pkl', 'rb') as out:
                predictions.append(pickle.load(out))
        assert len(predictions[0]) == 4
        for direct, indirect in zip(*predictions, strict=True):
            assert direct['img_path'] == indirect['img_path']
            for key in ('bboxes', 'labels', 'scores'):
                assert_close(indirect['pred_instances'][key], direct['pred_instances'][key])

    def test_pictures_besides_are_left_out_and_named(self, tmp_path, monkeypatch):
        logged = []
        monkeypatch.setattr(stored_predictions, 'print_log', lambda message, **_: logged.append(message))
        build(write(tmp_path / 'more.npz', [*NAMES, 'else.png'])).check_dataset(dataset())
        (message,) = logged
        assert "has the 4 pictures of the test data; its predictions for 1 others ('else.png') are left out" in message

    @pytest.mark.parametrize('channels', [1, 2])
    def test_class_maps(self, tmp_path, channels):
        classes = np.array([[0, 1, 1]], np.uint8)
        # With two classes, one channel of scores is enough.
        scores = np.stack([1 - classes, classes][-channels:]).astype(np.float32)
        sample = SegDataSample(metainfo=dict(img_path='folder/a.png', ori_shape=(1, 3)))
        file = write(tmp_path / 'a.npz', ['a.png'], 'segmentation', classes_0=classes, scores_0=scores)
        build(file).test_step(dict(inputs=None, data_samples=[sample]))
        assert sample.pred_sem_seg.data.tolist() == [[[0, 1, 1]]]
        assert sample.seg_logits.data.tolist() == scores.tolist()

    def test_scores_of_classes(self, tmp_path):
        sample = DataSample(metainfo=dict(img_path='folder/a.png'))
        file = write(tmp_path / 'a.npz', ['a.png'], 'classification', scores_0=np.array([0.25, 0.75], np.float32))
        build(file).test_step(dict(inputs=None, data_samples=[sample]))
        assert sample.pred_score.tolist() == [0.25, 0.75]
        assert sample.pred_label.tolist() == [1]


def dataset(paths=NAMES, **metainfo):
    """A stand-in for a data set, with only the paths of the pictures."""

    class Pictures(list):
        def get_data_info(self, index):
            return self[index]

    found = Pictures(dict(img_path=f'folder/{path}') for path in paths)
    found.metainfo = metainfo
    return found


class TestRefused:
    def test_missing_pictures(self, tiny, tmp_path):
        message = r"no predictions for 2 of the 4 pictures of the test data \('10\.png', '9\.png'\): run the"
        with pytest.raises(UserError, match=message):
            run_test(load_tiny_run(tiny), write(tmp_path / 'few.npz', ['8.png', '11.png']))

    def test_the_pictures_of_another_set(self, tmp_path):
        message = r"for 4 of the 4 pictures .*, but predictions for 1 others \('else\.png'\): run the model on all"
        with pytest.raises(UserError, match=message):
            build(write(tmp_path / 'other.npz', ['else.png'])).check_dataset(dataset())

    def test_names_that_several_pictures_share(self, tmp_path):
        with pytest.raises(UserError, match=r"twice\.npz has several pictures named '8\.png' \(such names: 1\)"):
            build(write(tmp_path / 'twice.npz', [*NAMES, '8.png'])).check_dataset(dataset())
        with pytest.raises(UserError, match=r"the test data has several pictures named '8\.png' \(such names: 1\)"):
            build(write(tmp_path / 'once.npz')).check_dataset(dataset([*NAMES, 'other/8.png']))

    def test_a_data_set_without_files(self, tmp_path):
        pictures = dataset()
        del pictures[0]['img_path']
        with pytest.raises(UserError, match='is matched by file names, but the pictures of the test data are not'):
            build(write(tmp_path / 'a.npz')).check_dataset(pictures)

    def test_a_pipeline_that_leaves_no_names(self, tmp_path):
        with pytest.raises(UserError, match="leaves no 'img_path': give it among the meta_keys"):
            build(write(tmp_path / 'a.npz')).test_step(dict(inputs=None, data_samples=[DetDataSample()]))

    def test_another_task(self, tmp_path):
        cfg = Config.fromstring(f'data_root = ""\n{BACKBONE}{CLASSIFIER}', '.py')
        with pytest.raises(UserError, match=r'is of a model for detection, the config \(.*\) is for classification'):
            build(write(tmp_path / 'a.npz')).check_task(cfg.default_scope)

    def test_other_classes(self, tmp_path):
        with pytest.raises(UserError, match=r"is for 2 classes \('red', 'blue'\), the test data for 1 \('cat'\)"):
            build(write(tmp_path / 'a.npz')).check_dataset(dataset(classes=('cat',)))

    @pytest.mark.parametrize(
        'content', [b'', b'PK\x03\x04', b'\x80\x04K\x01.', pytest.param(None, id='foreign arrays'), 'text']
    )
    def test_files_of_something_else(self, tiny, tmp_path, content):
        path = tmp_path / 'a.npz'
        if content is None:
            np.savez(path, names=np.array(NAMES))
        elif content == 'text':
            np.savez(path, names=np.array(NAMES), metadata='no json')
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r'^\S+a\.npz is damaged or not a file of predictions: mmgroupnet-run'):
            run_test(load_tiny_run(tiny), str(path))

    def test_pictures_without_predictions(self, tmp_path):
        with pytest.raises(UserError, match=r"a\.npz lacks 'classes_0', 'classes_1': predict and write it again"):
            build(write(tmp_path / 'a.npz', ['a.png', 'b.png'], 'segmentation'))

    def test_a_damaged_array(self, tmp_path):
        file = write(tmp_path / 'a.npz')
        content = bytearray((tmp_path / 'a.npz').read_bytes())
        content[content.index(np.float32([3, 2, 30, 40]).tobytes())] ^= 1  # changes a box, so its checksum is wrong
        (tmp_path / 'a.npz').write_bytes(content)
        with pytest.raises(UserError, match=r'boxes_3, of 11\.png, is damaged: copy the file again'):
            build(file).test_step(dict(inputs=None, data_samples=[DetDataSample(metainfo=dict(img_path='11.png'))]))

    @pytest.mark.parametrize(
        ('arrays', 'message'),
        [
            (dict(boxes_0=np.zeros((1, 5))), r'boxes_0, of 8\.png, has the shape \(1, 5\), not \(n, 4\)'),
            (dict(scores_0=np.zeros(2)), r'scores_0, of 8\.png, has the shape \(2,\), not \(1\)'),
            (dict(labels_0=np.array([2])), r'for 8\.png have labels from 2 to 2, its classes are 0 to 1'),
        ],
    )
    def test_wrong_detections(self, tmp_path, arrays, message):
        sample = DetDataSample(metainfo=dict(img_path='8.png'))
        with pytest.raises(UserError, match=message):
            build(write(tmp_path / 'a.npz', **arrays)).test_step(dict(inputs=None, data_samples=[sample]))

    def test_a_class_map_of_another_size(self, tmp_path):
        sample = SegDataSample(metainfo=dict(img_path='a.png', ori_shape=(6, 4)))
        file = write(tmp_path / 'a.npz', ['a.png'], 'segmentation', classes_0=np.zeros((3, 2), np.uint8))
        with pytest.raises(UserError, match=r'classes_0, of a\.png, has the shape \(3, 2\), not \(6, 4\)'):
            build(file).test_step(dict(inputs=None, data_samples=[sample]))

    def test_drawing_on_other_pictures(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r'a\.npz holds predictions, not a model: mmgroupnet test --show-dir'):
            draw_on_pictures(load_tiny_run(tiny), write(tmp_path / 'a.npz'), [], tmp_path)
