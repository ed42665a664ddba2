"""tools/deploy/export_onnx.py: its file, its summary and its errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from tests.onnx_files import pictures, run
from tests.tiny_run import load_tiny_run

SCRIPT = Path(__file__).parents[2] / 'tools' / 'deploy' / 'export_onnx.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The tiny detector's config and weights."""
    folder = tmp_path_factory.mktemp('export_onnx')
    cfg = load_tiny_run(folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'float.pth')
    return folder


def export(folder, *arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)  # The tool must find the packages of its checkout itself.
    command = [sys.executable, str(SCRIPT), 'tiny.py', 'float.pth', *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_person_exports_a_checkpoint(folder):
    ended = export(folder, '--out', 'new/model.onnx', '--strict')
    assert ended.returncode == 0, ended.stderr
    size = (folder / 'new' / 'model.onnx').stat().st_size
    assert re.search(rf'^new/model.onnx: detection, {size:,} bytes, \d+ binary layers on bits$', ended.stdout, re.M)
    assert re.search(r'^exported in \d+\.\d s$', ended.stdout, re.M)
    assert set(run(folder / 'new' / 'model.onnx', image=pictures())) == {'dets', 'labels'}
    # The comparison needs the runtime of the checkout, whose library may not be built.
    library = SCRIPT.parents[2] / 'runtime' / 'src' / 'mmgroupnet_runtime' / 'lib' / 'libmmgroupnet_onnxruntime.so'
    compared = 'largest difference from the model on a random picture: dets ('
    assert (compared if library.is_file() else f'not compared with the model: UserError: {library}') in ended.stdout


def test_one_sentence_and_status_1(folder):
    ended = export(folder, '--out', 'model.onnx', '--scores', '--raw')
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == 'error: scores=True (--scores) is for class maps, not for maps'
    assert not (folder / 'model.onnx').exists()
