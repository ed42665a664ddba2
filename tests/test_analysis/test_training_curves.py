import json

import pytest
from PIL import Image

from mmgroupnet.analysis.training_curves import TrainingHistory, plot_training_curves, read_history, training_seconds


def write_run(work_dir, name, lines):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    text = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    (folder / 'scalars.json').write_text('\n'.join(text))


def test_losses_and_metrics(tmp_path):
    lines = [dict(loss=2.0, lr=0.1, epoch=1, step=10), dict(loss=1.0, lr=0.1, epoch=1, step=20)]
    write_run(tmp_path, '20260101_000000', [*lines, {'coco/bbox_mAP': 0.25, 'time': 0.1, 'step': 1}])
    assert read_history(tmp_path) == ({10: 2.0, 20: 1.0}, {'coco/bbox_mAP': {1: 0.25}})


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write_run(tmp_path, '20260102_000000', [dict(loss=5.0, step=20), dict(loss=6.0, step=30), {'a/b': 0.5, 'step': 2}])
    write_run(tmp_path, '20260101_000000', [dict(loss=2.0, step=10), dict(loss=1.0, step=20), {'a/b': 0.1, 'step': 1}])
    history = read_history(tmp_path)
    assert list(history.losses.items()) == [(10, 2.0), (20, 5.0), (30, 6.0)]
    assert list(history.metrics['a/b'].items()) == [(1, 0.1), (2, 0.5)]


def test_half_a_line_of_a_killed_run_is_skipped(tmp_path):
    write_run(tmp_path, '20260101_000000', [dict(loss=2.0, step=10), '{"loss": 1.'])
    assert read_history(tmp_path).losses == {10: 2.0}


def test_runs_of_folders_inside_are_others(tmp_path):
    write_run(tmp_path, '20260101_000000', [dict(loss=2.0, step=10)])
    write_run(tmp_path / 'float_twin', '20260101_000000', [dict(loss=3.0, step=10)])
    assert read_history(tmp_path).losses == {10: 2.0}


def test_seconds_of_all_iterations(tmp_path):
    lines = [dict(loss=2.0, time=1.0, step=10), dict(loss=1.0, time=3.0, step=20), {'a/b': 0.5, 'time': 9.0, 'step': 1}]
    write_run(tmp_path, '20260101_000000', lines)
    assert training_seconds(tmp_path) == 2.0 * 20
    # A resumed run repeats step 20 and adds ten iterations.
    write_run(tmp_path, '20260102_000000', [dict(loss=1.0, time=5.0, step=20), dict(loss=1.0, time=6.0, step=30)])
    assert training_seconds(tmp_path) == 4.0 * 30


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'holds no log of a training \(\*/vis_data/scalars.json\)'):
        read_history(tmp_path)


def test_plot_is_a_picture(tmp_path):
    history = TrainingHistory({10: 2.0, 20: 1.0}, {'coco/bbox_mAP_50': {1: 0.2, 2: 0.4}})
    empty = TrainingHistory({}, {})
    names = {'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP': 'AP'}
    plot_training_curves({'binary': history, 'float': empty}, names, tmp_path / 'curves.png', 'title')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == (1440, 552)
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 10
