"""The scripts that run the demos, with stand-ins for the tools, which have their own tests."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmgroupnet.datasets
import mmgroupnet.engine.model_report
from demo import run_demo, run_segmentation_demo, steps

# Each stand-in appends its arguments to calls.txt and writes the same files as the real tool.
TRAIN = """
import json, shutil, sys
from pathlib import Path
arguments = sys.argv[1:]
open('calls.txt', 'a').write(' '.join(['train', *arguments]) + chr(10))
if Path('fail').exists():
    sys.exit(3)
work_dir = Path(arguments[arguments.index('--work-dir') + 1])
run = work_dir / '20260101_000000' / 'vis_data'
run.mkdir(parents=True, exist_ok=True)
(run / 'scalars.json').write_text(json.dumps(dict(loss=1.0, step=10)))
shutil.copy('checkpoint.pth', work_dir / 'epoch_1.pth')
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
"""
TEST = """
import json, shutil, sys
from pathlib import Path
arguments = sys.argv[1:]
open('calls.txt', 'a').write(' '.join(['test', *arguments]) + chr(10))
run = Path(arguments[arguments.index('--work-dir') + 1]) / '20260101_000001'
run.mkdir()
ap = 0.4 if 'groupnet' in arguments[0] else 0.5
metrics = {} if Path('blind').exists() else {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap + 0.4}
if '-seg' in arguments[0]:
    metrics = {'mIoU': 62.5, 'mAcc': 75.0, 'aAcc': 93.75}
else:
    shutil.copy('predictions.pkl', arguments[arguments.index('--out') + 1])
(run / '20260101_000001.json').write_text(json.dumps({'time': 0.1, **metrics}))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with stand-ins for the tools; it is the current folder."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    (tmp_path / 'tools' / 'test.py').write_text(TEST)
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'checkpoint.pth')
    nothing = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0), scores=torch.zeros(0))
    results = [dict(img_id=image_id, pred_instances=nothing) for image_id in (1, 2)]
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(results))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, 'ROOT', tmp_path)
    monkeypatch.setattr('sys.argv', ['demo'])
    monkeypatch.setattr(mmgroupnet.engine.model_report, 'count_parameters', lambda config: (1000, 900))
    generate = partial(mmgroupnet.datasets.generate_digits, num_train=2, num_val=2)
    monkeypatch.setattr(mmgroupnet.datasets, 'generate_digits', generate)
    return tmp_path


def run(demo=run_demo, work_dir='work_dirs/demo') -> None:
    steps.run_demo('', Path(work_dir), demo.run)


def test_all_steps(checkout, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['demo', '--cfg-options', 'train_cfg.max_epochs=1'])
    run()
    calls = Path('calls.txt').read_text().splitlines()
    assert [call.split()[:2] for call in calls] == [
        ['train', 'configs/demo/fcos_groupnet_digits.py'],
        ['train', 'configs/demo/fcos_float_digits.py'],
        ['test', 'configs/demo/fcos_groupnet_digits.py'],
        ['test', 'configs/demo/fcos_float_digits.py'],
    ]
    assert all(call.endswith('--cfg-options train_cfg.max_epochs=1') for call in calls)

    summary = json.loads(Path('work_dirs/demo/summary.json').read_text())
    assert summary.pop('seconds') >= 0
    assert summary == {
        'bbox_mAP': 0.4,
        'bbox_mAP_50': 0.8,
        'float_bbox_mAP': 0.5,
        'float_bbox_mAP_50': 0.9,
        'checkpoint': 'work_dirs/demo/epoch_1.pth',
    }
    for picture in ('contact_sheet.png', 'curves.png'):
        with Image.open(Path('work_dirs/demo') / picture) as image:
            assert min(image.size) > 200
    printed = capsys.readouterr().out
    assert 'step 1/6: generate the digits' in printed and 'step 6/6' in printed
    assert 'work_dirs/demo/contact_sheet.png' in printed


def test_all_steps_of_segmentation(checkout, monkeypatch, capsys):
    config = Path(__file__).parents[2] / run_segmentation_demo.CONFIG
    drawn = []

    def draw(work_dir, checkpoint, miou):
        drawn.append((str(work_dir), str(checkpoint), miou))

    monkeypatch.setattr(run_segmentation_demo, 'draw_results', draw)
    run(run_segmentation_demo, 'work_dirs/demo-seg')
    calls = Path('calls.txt').read_text().splitlines()
    assert [call.split()[:2] for call in calls] == [[tool, str(config.relative_to(config.parents[2]))] for tool in
                                                    ('train', 'test')]  # fmt: skip
    assert '--show-dir work_dirs/demo-seg/overlays' in calls[1]
    assert drawn == [('work_dirs/demo-seg', 'work_dirs/demo-seg/epoch_1.pth', 62.5)]
    summary = json.loads(Path('work_dirs/demo-seg/summary.json').read_text())
    assert summary.pop('seconds') >= 0
    assert summary == dict(mIoU=0.625, mAcc=0.75, aAcc=0.9375, checkpoint='work_dirs/demo-seg/epoch_1.pth')
    assert 'binary FCN-8s  0.625  0.750  0.938       1,000            90%' in capsys.readouterr().out


def test_a_detector_that_finds_nothing_has_no_ap(checkout):
    Path('blind').touch()
    run(work_dir='demo')
    assert json.loads(Path('demo/summary.json').read_text())['bbox_mAP_50'] == 0


def test_a_failing_tool_stops_the_demo(checkout, capsys):
    Path('fail').touch()
    with pytest.raises(SystemExit):
        run()
    assert 'error: tools/train.py ended with exit status 3' in capsys.readouterr().err
    assert len(Path('calls.txt').read_text().splitlines()) == 1
    assert not Path('work_dirs/demo/summary.json').exists()


def test_an_unfinished_demo_goes_on_and_a_finished_one_is_kept(checkout):
    work_dir = Path('work_dirs/demo')
    work_dir.mkdir(parents=True)
    (work_dir / 'epoch_1.pth').write_bytes(b'unfinished')
    steps.keep_finished_results(work_dir)
    assert (work_dir / 'epoch_1.pth').exists()

    (work_dir / 'summary.json').write_text('first')
    steps.keep_finished_results(work_dir)
    assert not work_dir.exists()
    work_dir.mkdir()
    (work_dir / 'summary.json').write_text('second')
    steps.keep_finished_results(work_dir)
    assert [path.name for path in work_dir.parent.iterdir()] == ['demo_previous']
    assert [path.name for path in Path('work_dirs/demo_previous').iterdir()] == ['summary.json']
    assert Path('work_dirs/demo_previous/summary.json').read_text() == 'second'


@pytest.mark.parametrize('kind', ['folder', 'file', 'link'])
def test_nothing_of_others_is_removed_for_the_last_results(checkout, capsys, kind):
    """``--work-dir runs`` keeps the last results in ``runs_previous``, but the user may have other files there."""
    runs, previous = Path('runs'), Path('runs_previous')
    runs.mkdir()
    (runs / 'summary.json').write_text('last')
    if kind == 'file':
        previous.write_text('notes')
    else:
        (Path('elsewhere') if kind == 'link' else previous).mkdir()
        if kind == 'link':
            previous.symlink_to('elsewhere')
        (previous / 'weeks_of_work.pth').touch()
    with pytest.raises(SystemExit):
        run(work_dir='runs')
    assert 'error: the results of the last demo cannot be kept in runs_previous' in capsys.readouterr().err
    assert (runs / 'summary.json').read_text() == 'last'
    assert previous.read_text() == 'notes' if kind == 'file' else (previous / 'weeks_of_work.pth').exists()


def test_evaluations_of_others_are_left(checkout):
    (checkout / 'demo/evaluation/20250101_000000').mkdir(parents=True)
    theirs = checkout / 'demo/evaluation/20250101_000000/20250101_000000.json'
    theirs.write_text('{"coco/bbox_mAP": 0.9}')
    run(work_dir='demo')
    assert json.loads(Path('demo/summary.json').read_text())['bbox_mAP'] == 0.4
    assert theirs.exists()


def test_time_is_counted_over_runs_and_failures(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(steps.time, 'monotonic', lambda: next(clock))
    with pytest.raises(RuntimeError):
        with steps.Stopwatch(tmp_path / 'seconds.json', 2).step('train'):
            raise RuntimeError
    again = steps.Stopwatch(tmp_path / 'seconds.json', 2)
    with again.step('train'):
        pass
    assert again.seconds == {'train': 5.0} and again.total == 5.0


def test_table():
    results = [
        run_demo.Result('all-binary detector', 0.512, 0.8049, 1_234_567, 1_111_110, 240.4),
        run_demo.Result('float twin', 0.55, 0.82, 987_654, 0, 61.0),
    ]
    assert run_demo.format_table(results).splitlines() == [
        'detector                AP   AP50  parameters  of them 1-bit  training',
        '-------------------  -----  -----  ----------  -------------  --------',
        'all-binary detector  0.512  0.805   1,234,567            90%     240 s',
        'float twin           0.550  0.820     987,654             0%      61 s',
    ]
