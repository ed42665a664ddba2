from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample, TrackDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from mmgroupnet.engine.hooks import DrawPredictionsHook, draw_predictions_hook
from mmgroupnet.errors import UserError

# The attributes of a runner that the hook reads.
RUNNER = SimpleNamespace(
    cfg=Config(dict(default_scope='mmpretrain')),
    visualizer=SimpleNamespace(dataset_meta=dict(classes=('cat', 'dog'))),
)


def sample(**metainfo):
    scores = torch.tensor([0.25, 0.75])
    return DataSample(metainfo=metainfo).set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))


@pytest.mark.parametrize('inputs', ['stacked', 'listed', 'augmented', 'augmented and listed', 'grey'])
def test_pictures_of_arrays_are_drawn_as_they_come(tmp_path, inputs):
    pictures = torch.arange(2 * 3 * 40 * 60).reshape(2, 3, 40, 60) % 251
    if inputs == 'grey':
        pictures = pictures[:, :1]
    augmented = [pictures, pictures.flip(-1)]
    batch = {
        'stacked': pictures,
        'listed': list(pictures),
        'augmented': augmented,
        'augmented and listed': [list(views) for views in augmented],
        'grey': pictures,
    }[inputs]
    hook = DrawPredictionsHook('mmpretrain', out_dir=str(tmp_path / 'drawn'), root=str(tmp_path))
    hook.before_test(RUNNER)
    for index in range(2):
        hook.after_test_iter(RUNNER, index, dict(inputs=batch), [sample(), sample()])
    names = [f'{number:06}.png' for number in range(4)]
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == names
    drawn = cv2.imread(str(tmp_path / 'drawn/000001.png'))[..., ::-1]
    expected = pictures[1].expand(3, 40, 60).permute(1, 2, 0).numpy()
    # The text is in the upper left corner; the rest is the picture.
    assert (drawn[30:, 45:] == expected[30:, 45:]).all()
    assert (drawn != expected).any()


def test_every_frame_of_a_video_is_drawn(tmp_path):
    frames = []
    for number in (1, 2):
        path = tmp_path / f'video/{number}.png'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 60, 3), 90, np.uint8))
        frame = DetDataSample(metainfo=dict(img_path=str(path)))
        frame.pred_instances = InstanceData(
            bboxes=torch.tensor([[5.0, 5.0, 30.0, 30.0]]),
            scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long),
        )
        frames.append(frame)
    video = TrackDataSample()
    video.video_data_samples = frames
    runner = SimpleNamespace(
        cfg=Config(dict(default_scope='mmdet')),
        visualizer=SimpleNamespace(dataset_meta=dict(classes=('person',))),
    )
    hook = DrawPredictionsHook('mmdet', out_dir=str(tmp_path / 'drawn'), root=str(tmp_path))
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, None, [video])
    for number in (1, 2):
        assert (cv2.imread(str(tmp_path / f'drawn/video/{number}.png')) != 90).any()


def test_misuse(tmp_path, monkeypatch):
    hook = DrawPredictionsHook('mmdet', out_dir=str(tmp_path))
    with pytest.raises(UserError, match="leaves no 'img_path': give it among the meta_keys"):
        hook.after_test_iter(RUNNER, 0, dict(inputs=torch.zeros(1, 3, 8, 8)), [sample()])
    (tmp_path / 'volume.nii').write_bytes(b'no picture')
    with pytest.raises(UserError, match='volume.nii cannot be drawn on'):
        hook.after_test_iter(RUNNER, 0, None, [sample(img_path=str(tmp_path / 'volume.nii'))])
    hook = DrawPredictionsHook('mmpretrain', out_dir=str(tmp_path))
    hook.before_test(RUNNER)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r'of mmpretrain only classifiers \(pred_score\) can be drawn'):
        hook.after_test_iter(RUNNER, 0, None, [DataSample(metainfo=dict(img_path=str(tmp_path / 'a.png')))])
    monkeypatch.setattr(draw_predictions_hook, 'get_world_size', lambda: 2)
    with pytest.raises(UserError, match='draw only in the first process; test with one process'):
        hook.before_test(RUNNER)
