"""The tools, started from the command line in a folder outside the checkout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmgroupnet.checkpoints.read import read_checkpoint
from tests.onnx_models import TWO_CLASSES, write_onnx
from tests.tiny_run import write_tiny_run

TOOLS = Path(__file__).parents[2] / 'tools'


def environment():
    found = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    found.pop('PYTHONPATH', None)
    return found


def run_tool(name, *arguments, cwd, check=True):
    command = [str(TOOLS / name)] if name.endswith('.sh') else [sys.executable, str(TOOLS / name)]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def logged(work_dir):
    """Losses by iteration over all runs of a work directory; a newer run replaces those of older runs."""
    found = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        found.update({row['step']: row['loss'] for row in rows if 'loss' in row})
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tools')
    write_tiny_run(folder)
    run_tool('train.py', 'tiny.py', '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', cwd=folder)
    return folder


CHECKPOINT = 'work_dirs/tiny/epoch_1.pth'


def test_training_writes_checkpoint_and_log(folder):
    assert read_checkpoint(folder / CHECKPOINT)['meta']['epoch'] == 1
    assert sorted(logged(folder / 'work_dirs/tiny')) == [1, 2, 3, 4]
    assert (folder / 'work_dirs/tiny/tiny.py').exists()


def test_testing_and_all_its_options(folder, tmp_path):
    options = ['--work-dir', tmp_path, '--out', tmp_path / 'out.pkl', '--show-dir', tmp_path / 'drawn', '--tta']
    done = run_tool('test.py', 'tiny.py', CHECKPOINT, *options, cwd=folder)
    assert 'bbox_mAP' in done.stdout + done.stderr
    assert (tmp_path / 'out.pkl').exists()
    assert len(list(tmp_path.glob('drawn/*.png'))) == 4


def test_exported_models_and_predictions_of_a_device(folder, tmp_path):
    model = write_onnx(tmp_path / 'model.onnx', TWO_CLASSES['detection'], 'detection', classes=['red', 'blue'])
    boxes = dict(boxes=np.float32([[0, 0, 32, 24]]), labels=np.array([0]), scores=np.float32([0.5]))
    stored = {f'{key}_{index}': array for index in range(4) for key, array in boxes.items()}
    names = np.array([f'{number}.png' for number in range(8, 12)])
    text = json.dumps(dict(task='detection', classes=['red', 'blue'], palette=None))
    np.savez(tmp_path / 'board.npz', names=names, metadata=text, **stored)
    for file in (model, tmp_path / 'board.npz'):
        done = run_tool('test.py', 'tiny.py', file, '--work-dir', tmp_path, cwd=folder)
        assert 'bbox_mAP' in done.stdout + done.stderr
    done = run_tool('predict.py', 'data/images', 'tiny.py', model, '--out', tmp_path, cwd=folder)
    assert f'12 pictures in {tmp_path}/vis' in done.stdout


def test_predictions_on_a_folder_and_on_a_picture(folder, tmp_path):
    options = ['--out', tmp_path, '--score-thr', '0', '--device', 'cpu']
    done = run_tool('predict.py', 'data/images', 'tiny.py', CHECKPOINT, *options, cwd=folder)
    assert f'12 pictures in {tmp_path}/vis' in done.stdout
    drawn = cv2.imread(str(tmp_path / 'vis/3.png'))
    assert drawn.shape == (48, 64, 3)
    assert (drawn != cv2.imread(str(folder / 'data/images/3.png'))).any()


def test_print_config_shows_what_is_overridden(folder):
    done = run_tool('misc/print_config.py', 'tiny.py', '--cfg-options', 'model.backbone.depth=34', cwd=folder)
    assert 'depth=34' in done.stdout


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (
            'train.py',
            ['tiny.py', '--cfg-options', 'model.backbone.num_base=2'],
            "model.backbone: GroupNetResNet takes no argument 'num_base' (did you mean 'num_bases'?)",
        ),
        ('predict.py', ['nowhere', 'tiny.py', CHECKPOINT], 'nowhere is neither a picture nor a folder'),
        (
            'test.py',
            ['tiny.py', 'model.onnx', '--cfg-options', 'model.test_cfg.score_thr=0.1'],
            '--cfg-options model.test_cfg.score_thr: model.onnx was made with another value',
        ),
        ('test.py', ['tiny.py', 'nowhere.onnx'], 'nowhere.onnx does not exist'),
    ],
)
def test_errors_are_one_line(folder, tool, arguments, message):
    done = run_tool(tool, *arguments, cwd=folder, check=False)
    assert done.returncode == 1
    assert f'error: {message}' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_run_that_is_killed_in_mid_epoch_is_taken_up(folder, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    # Enough iterations that the second epoch is still running when the process is killed.
    options = ['--cfg-options', 'train_dataloader.batch_size=1', 'train_cfg.max_epochs=2']
    run_tool('train.py', 'tiny.py', '--work-dir', whole, *options, cwd=folder)
    command = [sys.executable, str(TOOLS / 'train.py'), 'tiny.py', '--work-dir', str(killed), *options]
    training = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 200
    while not any(step > 8 for step in logged(killed)) and time.time() < deadline and training.poll() is None:
        time.sleep(0.02)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert training.returncode == -signal.SIGKILL
    assert not (killed / 'epoch_2.pth').exists()
    run_tool('train.py', 'tiny.py', '--work-dir', killed, '--resume', *options, cwd=folder)
    assert (killed / 'epoch_2.pth').exists()
    assert logged(killed) == logged(whole)


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPUs')
def test_two_processes_train_and_test(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('PORT', str(20000 + os.getpid() % 20000))
    options = ['--work-dir', tmp_path, '--cfg-options', 'model.backbone.norm_cfg.type=SyncBN']
    done = run_tool('dist_train.sh', 'tiny.py', '2', *options, 'train_cfg.max_epochs=1', cwd=folder)
    assert 'synchronised batch norms become ordinary ones' in done.stdout + done.stderr
    assert sorted(logged(tmp_path)) == [1, 2]
    done = run_tool('dist_test.sh', 'tiny.py', tmp_path / 'epoch_1.pth', '2', *options, cwd=folder)
    assert 'bbox_mAP' in done.stdout + done.stderr
