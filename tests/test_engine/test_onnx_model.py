"""Exported models in place of checkpoints: predictions in data samples, whole runs, and errors."""

import copy
import pickle
import sys
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from mmgroupnet.engine.exported_model import check_model_options
from mmgroupnet.engine.onnx_export import export_checkpoint
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.engine.pictures import find_images
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.engine.testing import run_test
from mmgroupnet.errors import UserError
from tests.onnx_models import TWO_CLASSES, write_onnx
from tests.operators import build_operators
from tests.test_checkpoints.test_packed import OPTIONS, write_float
from tests.test_engine.test_libraries import BACKBONE, CLASSIFIER, SEGMENTOR, write_pictures
from tests.tiny_run import load_tiny_run, write_tiny_run

CLASSES = dict(
    detection=['red', 'blue'], segmentation=['left', 'right'], classification=['dark', 'light'], maps=['red', 'blue']
)


def write(folder, task, **options):
    return str(write_onnx(folder / f'{task}.onnx', TWO_CLASSES[task], task, **{'classes': CLASSES[task], **options}))


def build(file):
    return MODELS.build(dict(type='mmgroupnet.OnnxModel', file=file))


def picture(height, width, blue=0, green=0, red=0):
    return torch.tensor([blue, green, red], dtype=torch.uint8)[:, None, None].expand(3, height, width)


class TestAnswers:
    def test_detections_in_pixels_of_the_picture(self, tmp_path):
        # The two pictures are one batch; the rows with label -1 pad it and are left out.
        samples = [DetDataSample(metainfo=dict(ori_shape=(20, 80), scale_factor=(0.5, 2.0))) for _ in range(2)]
        data = dict(inputs=[picture(40, 40, blue=255), picture(40, 40, green=51, red=255)], data_samples=samples)
        found = build(write(tmp_path, 'detection')).test_step(data)
        assert found is samples
        for sample, scores in zip(found, ([1, 0], [0, 0.2]), strict=True):
            assert_close(sample.pred_instances.bboxes, torch.tensor([[0, 0, 40, 10], [20, 5, 60, 20.0]]))
            assert_close(sample.pred_instances.scores, torch.tensor(scores, dtype=torch.float32))
            assert sample.pred_instances.labels.tolist() == [0, 1]

    def test_pictures_that_were_not_resized(self, tmp_path):
        sample = DetDataSample(metainfo=dict(ori_shape=(40, 60)))
        build(write(tmp_path, 'detection')).test_step(dict(inputs=[picture(40, 60)], data_samples=[sample]))
        assert sample.pred_instances.bboxes.tolist() == [[0, 0, 30, 20], [15, 10, 45, 40]]

    @pytest.mark.parametrize('shapes', [[(4, 6), (8, 3)], [(4, 6), (4, 6)]])
    def test_class_maps_of_the_pictures_own_sizes(self, tmp_path, shapes):
        image = torch.cat([picture(2, 3, red=255), picture(2, 3, blue=255)], dim=1)
        samples = [SegDataSample(metainfo=dict(ori_shape=shape)) for shape in shapes]
        build(write(tmp_path, 'segmentation')).test_step(dict(inputs=torch.stack([image] * 2), data_samples=samples))
        for sample, (height, width) in zip(samples, shapes, strict=True):
            expected = torch.zeros(1, height, width, dtype=torch.int64)
            expected[:, : height // 2] = 1
            assert_close(sample.pred_sem_seg.data, expected)
            assert_close(sample.seg_logits.data, torch.cat([1 - expected, expected]).float())

    def test_scores_of_classes(self, tmp_path):
        samples = [DataSample(), DataSample()]
        images = torch.stack([picture(8, 8, blue=255), picture(8, 8, green=255)])
        build(write(tmp_path, 'classification')).test_step(dict(inputs=images, data_samples=samples))
        expected = torch.tensor([1.0, 0.0]).softmax(dim=0)
        for sample, scores, label in zip(samples, (expected, expected.flip(0)), (0, 1), strict=True):
            assert_close(sample.pred_score, scores)
            assert sample.pred_label.tolist() == [label]

    def test_pictures_of_several_sizes_one_by_one(self, tmp_path):
        samples = [DetDataSample(), DetDataSample()]
        inputs = [picture(40, 60, blue=255), picture(20, 100, blue=51)]
        build(write(tmp_path, 'detection')).test_step(dict(inputs=inputs, data_samples=samples))
        assert [sample.pred_instances.bboxes[0].tolist() for sample in samples] == [[0, 0, 30, 20], [0, 0, 50, 10]]
        assert_close(torch.stack([sample.pred_instances.scores[0] for sample in samples]), torch.tensor([1, 0.2]))

    @pytest.mark.parametrize('image', [picture(4, 4).float(), picture(4, 4)[:1]])
    def test_pictures_of_another_type_are_refused(self, tmp_path, image):
        model = build(write(tmp_path, 'classification'))
        with pytest.raises(UserError, match=r'takes pictures of uint8 \(3, H, W\), the test pipeline makes torch\.'):
            model.test_step(dict(inputs=[image], data_samples=[DataSample()]))

    def test_what_the_graph_refuses_is_one_sentence(self, tmp_path):
        with pytest.raises(UserError, match='images'):
            build(write(tmp_path, 'classification')).test_step(
                dict(inputs=[picture(0, 4)], data_samples=[DataSample()])
            )


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('onnx')
    write_tiny_run(folder)
    write(folder, 'detection')
    return folder


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path)

    def config(library):
        shared = 'test_dataloader = val_dataloader\ntest_evaluator = val_evaluator\n'
        cfg = Config.fromstring(f'data_root = {str(tmp_path)!r}\n{BACKBONE}{library}{shared}', '.py')
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), launcher='none', experiment_name=tmp_path.name))
        return cfg

    return tmp_path, config


class TestRuns:
    def test_a_detector_with_all_options_and_a_hook_that_copies_the_model(self, tiny, tmp_path):
        cfg = load_tiny_run(tiny, custom_hooks=[dict(type='EMAHook')], load_from='nowhere.pth')
        options = dict(out=str(tmp_path / 'out.pkl'), show_dir=str(tmp_path / 'drawn'))
        assert 'coco/bbox_mAP' in run_test(cfg, str(tiny / 'detection.onnx'), **options)
        with open(options['out'], 'rb') as file:
            found = pickle.load(file)
        image = cv2.imread(str(tiny / 'data/images/8.png'))
        assert_close(found[0]['pred_instances']['bboxes'], torch.tensor([[0, 0, 32, 24], [16, 12, 48, 48.0]]))
        means = torch.tensor(image[..., :2].mean((0, 1)) / 255, dtype=torch.float32)
        assert_close(found[0]['pred_instances']['scores'], means)
        assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 4

    def test_a_segmentor(self, pictures):
        folder, config = pictures
        # The pictures are light, so the model predicts class 1 everywhere, which is right in one half.
        assert run_test(config(SEGMENTOR), write(folder, 'segmentation'))['mIoU'] == 25

    def test_a_classifier(self, pictures):
        folder, config = pictures
        means = np.array([cv2.imread(path).mean((0, 1)) for path in sorted(map(str, folder.glob('images/*/*')))])
        expected = 100 * (means[:, :2].argmax(1) == [0, 0, 0, 0, 1, 1, 1, 1]).mean()
        assert run_test(config(CLASSIFIER), write(folder, 'classification'))['accuracy/top1'] == expected

    def test_a_detector_draws_with_its_own_classes(self, tiny, tmp_path):
        image = tiny / 'data/images/8.png'
        drawn = [image.read_bytes()]
        for classes in (['red', 'blue'], ['one', 'two']):
            file = write(tmp_path, 'detection', classes=classes)
            folder = draw_on_pictures(load_tiny_run(tiny), file, [str(image)], tmp_path / classes[0], 0.0)
            drawn.append((folder / '8.png').read_bytes())
        assert len(set(drawn)) == 3

    def test_a_segmentor_draws(self, pictures):
        folder, config = pictures
        file = write(folder, 'segmentation', palette=[[0, 0, 250], [250, 0, 0]])
        images = find_images(folder / 'images/light')
        drawn = draw_on_pictures(config(SEGMENTOR), file, images, folder / 'drawn')
        red = cv2.imread(str(drawn / '4.png')).mean((0, 1))
        assert red[2] > 200 > 100 > red[0]

    def test_a_classifier_draws(self, pictures):
        folder, config = pictures
        images = find_images(folder / 'images/light')
        with DefaultScope.overwrite_default_scope('mmpretrain'):  # mmpretrain's inferencer does not set it.
            drawn = draw_on_pictures(config(CLASSIFIER), write(folder, 'classification'), images, folder / 'drawn')
        assert len(list(drawn.iterdir())) == 4


class TestRefused:
    def test_a_missing_file(self, tiny):
        with pytest.raises(UserError, match=r'nowhere\.onnx does not exist'):
            run_test(load_tiny_run(tiny), 'nowhere.onnx')

    def test_a_damaged_file(self, tiny, tmp_path):
        (tmp_path / 'half.onnx').write_bytes((tiny / 'detection.onnx').read_bytes()[:500])
        with pytest.raises(UserError, match=r'^\S+half\.onnx is damaged'):
            run_test(load_tiny_run(tiny), str(tmp_path / 'half.onnx'))
        with pytest.raises(UserError, match=r'^\S+half\.onnx is damaged'):
            draw_on_pictures(load_tiny_run(tiny), str(tmp_path / 'half.onnx'), [], tmp_path)

    def test_another_task(self, tiny, tmp_path):
        message = r"segmentation\.onnx is of a model for segmentation, the config \(.*'mmdet'\) is for detection"
        with pytest.raises(UserError, match=message):
            run_test(load_tiny_run(tiny), write(tmp_path, 'segmentation'))
        with pytest.raises(UserError, match=message):
            draw_on_pictures(load_tiny_run(tiny), write(tmp_path, 'segmentation'), [], tmp_path)

    def test_maps(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r'maps\.onnx gives maps of the network \(--raw\), no predictions'):
            run_test(load_tiny_run(tiny), write(tmp_path, 'maps'))

    def test_a_config_of_another_library(self, tiny):
        with pytest.raises(UserError, match=r"default_scope is one of mmdet, mmseg, mmpretrain, not 'mmengine'"):
            build(str(tiny / 'detection.onnx')).check_task('mmengine')

    def test_other_classes(self, tiny, tmp_path):
        file = write(tmp_path, 'detection', classes=['blue', 'red'])
        message = r"is for 2 classes \('blue', 'red'\), the test data for 2 \('red', 'blue'\): give the config"
        with pytest.raises(UserError, match=message):
            run_test(load_tiny_run(tiny), file)

    def test_no_classes_are_taken_as_the_data_has_them(self, tiny, tmp_path):
        assert run_test(load_tiny_run(tiny), write(tmp_path, 'detection', classes=None))

    def test_test_time_augmentation(self, tiny):
        with pytest.raises(UserError, match=r'--tta: .*detection\.onnx cannot predict on augmented pictures'):
            run_test(load_tiny_run(tiny), str(tiny / 'detection.onnx'), tta=True)

    def test_several_processes(self, tiny):
        with pytest.raises(UserError, match=r'--launcher pytorch: .*detection\.onnx is evaluated by one process'):
            run_test(load_tiny_run(tiny, launcher='pytorch'), str(tiny / 'detection.onnx'))

    def test_options_of_the_model(self):
        check_model_options('epoch_1.pth', ['model.test_cfg.score_thr'])
        check_model_options('model.onnx', ['test_dataloader.batch_size'])
        with pytest.raises(UserError, match=r'--cfg-options model\.test_cfg\.score_thr: model\.onnx was made'):
            check_model_options('model.onnx', ['test_dataloader.batch_size', 'model.test_cfg.score_thr'])

    def test_another_device(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r'--device cuda:0: .*detection\.onnx runs only on the CPU'):
            draw_on_pictures(load_tiny_run(tiny), tiny / 'detection.onnx', [], tmp_path, device='cuda:0')

    def test_without_the_runtime(self, tiny, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmgroupnet_runtime', None)
        with pytest.raises(UserError, match=r'run by the package mmgroupnet-runtime, which cannot be imported'):
            run_test(load_tiny_run(tiny), str(tiny / 'detection.onnx'))


@pytest.fixture(scope='module')
def with_operators():
    """The runtime uses the operators of this checkout, compiled for the tests."""
    library = str(build_operators())
    with mock.patch('mmgroupnet_runtime.model.library_path', lambda: library):
        yield


@pytest.mark.usefixtures('with_operators')
class TestAgainstPackedCheckpoints:
    """The models are untrained, so their predictions are wrong, but those of both files must be the same."""

    @pytest.mark.slow
    def test_a_detector(self, tmp_path):
        write_tiny_run(tmp_path)
        cfg = load_tiny_run(tmp_path, **OPTIONS)
        write_float(cfg, tmp_path / 'float.pth')
        metrics, predictions, drawn = [], [], []
        pack_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'packed.pth')
        export_checkpoint(cfg, tmp_path / 'packed.pth', tmp_path / 'packed.onnx')
        for name in ('packed.pth', 'packed.onnx'):
            file, out = str(tmp_path / name), str(tmp_path / 'out.pkl')
            metrics.append(run_test(load_tiny_run(tmp_path, **OPTIONS), file, out=out))
            with open(out, 'rb') as opened:
                predictions.append([picture['pred_instances'] for picture in pickle.load(opened)])
            images = [str(tmp_path / 'data/images/8.png')]
            folder = draw_on_pictures(load_tiny_run(tmp_path, **OPTIONS), file, images, tmp_path / name[-4:], 0.0)
            drawn.append((folder / '8.png').read_bytes())
        assert metrics[0]['coco/bbox_mAP_50'] > 0.01
        assert metrics[1] == pytest.approx(metrics[0], abs=0.002)
        assert drawn[1] == drawn[0]
        for packed, exported in zip(*predictions, strict=True):
            assert_close(exported['scores'], packed['scores'], atol=1e-5, rtol=1e-4)
            # Boxes with equal scores may have another order.
            ordered, other = (
                torch.cat([found['bboxes'], 100 * found['labels'][:, None], 100 * found['scores'][:, None]], dim=1)
                for found in (packed, exported)
            )
            distances = torch.cdist(ordered, other, compute_mode='donot_use_mm_for_euclid_dist')
            assert distances.amin(0).max() < 0.05 > distances.amin(1).max()

    @pytest.mark.parametrize(
        ('library', 'classes'),
        [
            pytest.param(SEGMENTOR, ('left', 'right'), id='mmseg'),
            pytest.param(CLASSIFIER, ('dark', 'light'), id='mmpretrain', marks=pytest.mark.slow),
        ],
    )
    def test_others(self, pictures, library, classes):
        folder, config = pictures
        dataset_meta = dict(classes=classes, palette=[(200, 10, 10), (10, 10, 200)])
        write_float(config(library), folder / 'float.pth', dataset_meta)
        pack_checkpoint(config(library), folder / 'float.pth', folder / 'packed.pth')
        export_checkpoint(config(library), folder / 'packed.pth', folder / 'packed.onnx')
        metrics = [run_test(config(library), str(folder / name)) for name in ('packed.pth', 'packed.onnx')]
        assert metrics[1] == pytest.approx(metrics[0], abs=0.1)
        images = find_images(folder / 'images/dark')
        drawn = [
            draw_on_pictures(config(library), folder / name, images, folder / name[-4:])
            for name in ('packed.pth', 'packed.onnx')
        ]
        names = [image.name for image in drawn[0].iterdir()]
        assert len(names) == len(images)
        for name in names:
            assert (drawn[1] / name).read_bytes() == (drawn[0] / name).read_bytes()


def test_copies_share_the_session(tiny):
    model = build(str(tiny / 'detection.onnx'))
    assert copy.deepcopy(model) is model


def test_stock_inferencers_take_the_config(tiny):
    cfg = load_tiny_run(tiny)
    cfg.model = dict(type='mmgroupnet.OnnxModel', file=str(tiny / 'detection.onnx'))
    found = DetInferencer(cfg, device='cpu')(str(tiny / 'data/images/8.png'))['predictions'][0]
    assert found['labels'] == [0, 1]
