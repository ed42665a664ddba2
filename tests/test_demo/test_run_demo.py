"""The driver of the demo, with stand-ins for the tools: what they do themselves is tested elsewhere."""

import importlib.util
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmgroupnet.datasets
import mmgroupnet.engine.model_report

SCRIPT = Path(__file__).parents[2] / 'demo' / 'run_demo.py'

# Each stand-in appends its arguments to calls.txt and leaves what the real tool would.
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
(run / '20260101_000001.json').write_text(json.dumps({'time': 0.1, **metrics}))
shutil.copy('predictions.pkl', arguments[arguments.index('--out') + 1])
"""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The driver as a module, in a checkout of stand-ins that is the current folder."""
    spec = importlib.util.spec_from_file_location('run_demo', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    (tmp_path / 'tools' / 'test.py').write_text(TEST)
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'checkpoint.pth')
    nothing = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0), scores=torch.zeros(0))
    results = [dict(img_id=image_id, pred_instances=nothing) for image_id in (1, 2)]
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(results))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(mmgroupnet.engine.model_report, 'count_parameters', lambda config: (1000, 900))
    generate = partial(mmgroupnet.datasets.generate_digits, num_train=2, num_val=2)
    monkeypatch.setattr(mmgroupnet.datasets, 'generate_digits', generate)
    return module


def test_all_steps(demo, tmp_path, capsys):
    demo.run_demo(Path('work_dirs/demo'), ['train_cfg.max_epochs=1'])
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


def test_a_detector_that_finds_nothing_has_no_ap(demo):
    Path('blind').touch()
    demo.run_demo(Path('demo'), [])
    assert json.loads(Path('demo/summary.json').read_text())['bbox_mAP_50'] == 0


def test_a_failing_tool_stops_the_demo(demo, monkeypatch):
    Path('fail').touch()
    monkeypatch.setattr('sys.argv', ['run_demo.py'])
    with pytest.raises(SystemExit, match='tools/train.py ended with exit status 3'):
        demo.main()
    assert len(Path('calls.txt').read_text().splitlines()) == 1
    assert not Path('work_dirs/demo/summary.json').exists()


def test_an_unfinished_demo_goes_on_and_a_finished_one_is_kept(demo):
    work_dir = Path('work_dirs/demo')
    work_dir.mkdir(parents=True)
    (work_dir / 'epoch_1.pth').write_bytes(b'unfinished')
    demo.keep_finished_results(work_dir)
    assert (work_dir / 'epoch_1.pth').exists()

    (work_dir / 'summary.json').write_text('first')
    demo.keep_finished_results(work_dir)
    assert not work_dir.exists()
    work_dir.mkdir()
    (work_dir / 'summary.json').write_text('second')
    demo.keep_finished_results(work_dir)
    assert [path.name for path in work_dir.parent.iterdir()] == ['demo_previous']
    assert [path.name for path in Path('work_dirs/demo_previous').iterdir()] == ['summary.json']
    assert Path('work_dirs/demo_previous/summary.json').read_text() == 'second'


def test_time_is_counted_over_runs_and_failures(demo, tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(demo.time, 'monotonic', lambda: next(clock))
    with pytest.raises(RuntimeError):
        with demo.Stopwatch(tmp_path / 'seconds.json').step('train'):
            raise RuntimeError
    again = demo.Stopwatch(tmp_path / 'seconds.json')
    with again.step('train'):
        pass
    assert again.seconds == {'train': 5.0} and again.total == 5.0


def test_table(demo):
    results = [
        demo.Result('all-binary detector', 0.512, 0.8049, 1_234_567, 1_111_110, 240.4),
        demo.Result('float twin', 0.55, 0.82, 987_654, 0, 61.0),
    ]
    assert demo.format_table(results).splitlines() == [
        'detector                AP   AP50  parameters  of them 1-bit  training',
        '-------------------  -----  -----  ----------  -------------  --------',
        'all-binary detector  0.512  0.805   1,234,567            90%     240 s',
        'float twin           0.550  0.820     987,654             0%      61 s',
    ]
