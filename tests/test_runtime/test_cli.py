import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmgroupnet_runtime import __version__, load
from mmgroupnet_runtime.cli import main
from PIL import Image

from tests.onnx_models import CLASSIFIER, DETECTOR, MAPS, SEGMENTOR, write_onnx

SOURCES = Path(__file__).parents[2] / 'runtime' / 'src'


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a.png red and b.png blue."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    Image.new('RGB', (60, 40), 'red').save(folder / 'a.png')
    Image.new('RGB', (50, 40), 'blue').save(folder / 'b.png')
    return folder


@pytest.fixture
def run(capsys):
    """A function that runs the command and returns the printed lines."""

    def call(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def refused(capsys):
    """A function that runs a command that must fail; returns its error message."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 1
        captured = capsys.readouterr()
        assert captured.err.count('\n') == 1
        return captured.err

    return call


def test_a_line_per_picture(tmp_path, folder, run):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    assert run(model, folder) == [
        'a.png: red 255.00, blue 0.00, green 0.00',
        'b.png: blue 255.00, green 0.00, red 0.00',
    ]
    assert run(model, folder / 'b.png') == ['b.png: blue 255.00, green 0.00, red 0.00']
    model = write_onnx(tmp_path / 'model.onnx', SEGMENTOR, 'segmentation')
    assert run(model, folder) == ['a.png: red 100.0%', 'b.png: blue 100.0%']
    model = write_onnx(tmp_path / 'model.onnx', DETECTOR, 'detection')
    assert run(model, folder / 'a.png') == ['a.png: 1 detection: green 0.88']
    assert run(model, folder / 'a.png', '--score-thr', 0.1) == ['a.png: 2 detections: green 0.88, blue 0.25']


def test_the_json_file(tmp_path, folder, run):
    model = write_onnx(tmp_path / 'model.onnx', DETECTOR, 'detection')
    run(model, folder, '--json', tmp_path / 'new' / 'answers.json')
    answer = [
        {'class': 'green', 'label': 1, 'score': 0.875, 'box': [4, 2.5, 10, 20.25]},
        {'class': 'blue', 'label': 0, 'score': 0.25, 'box': [0.5, 1, 30, 13]},
    ]
    assert json.loads((tmp_path / 'new' / 'answers.json').read_text()) == dict(
        model='model.onnx',
        task='detection',
        classes=['blue', 'green', 'red'],
        pictures=[
            dict(name='a.png', width=60, height=40, answer=answer),
            dict(name='b.png', width=50, height=40, answer=answer),
        ],
    )


def test_the_predictions_file(tmp_path, folder, run):
    path = write_onnx(tmp_path / 'model.onnx', SEGMENTOR, 'segmentation')
    run(path, folder, '--npz', tmp_path / 'predictions.npz')
    with np.load(tmp_path / 'predictions.npz') as content:
        assert content['names'].tolist() == ['a.png', 'b.png']
        assert json.loads(content['metadata'].item()) == load(path).metadata
        np.testing.assert_array_equal(content['classes_0'], np.full((40, 60), 2, np.uint8))
        np.testing.assert_array_equal(content['classes_1'], np.full((40, 50), 0, np.uint8))
        assert content['scores_1'].shape == (3, 40, 50)


def test_drawn_pictures(tmp_path, folder, run):
    model = write_onnx(tmp_path / 'model.onnx', DETECTOR, 'detection', palette=[[0, 0, 0], [0, 255, 0], [9, 9, 9]])
    drawn = tmp_path / 'new' / 'drawn'
    run(model, folder, '--draw', drawn)
    assert sorted(path.name for path in drawn.iterdir()) == ['a.jpg', 'b.jpg']
    pixels = np.asarray(Image.open(drawn / 'a.jpg')).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert (pixels[25:, 20:] // 128 == [1, 0, 0]).all()  # The red picture.
    assert (pixels[20, 4:10, 1] > 100).all()  # The lower edge of the green box.


@pytest.mark.parametrize('threads', [1, None])
def test_times(tmp_path, folder, run, threads):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    line = run(model, folder, '--time', *(['--threads', threads] if threads else []))[-1]
    number = r'\d+\.\d\d'
    assert re.fullmatch(
        rf'ms per picture, median of 10: resize {number}, network {number} \(the first {number}\); '
        rf'threads: {threads or "one per core"}; ONNX Runtime [\d.]+, .+',
        line,
    )


def test_the_model_comes_first(tmp_path, folder, refused):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    assert refused(folder, model) == f'error: {folder} is a folder, an .onnx file is needed\n'


def test_what_is_refused(tmp_path, folder, refused):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    assert 'there is no file' in refused(tmp_path / 'other.onnx', folder)
    assert 'neither a picture nor a folder' in refused(model, tmp_path / 'other')
    assert 'cannot read the picture' in refused(model, model)
    assert 'threads=0: give' in refused(model, folder, '--threads', 0)
    assert 'call model.run(images)' in refused(write_onnx(tmp_path / 'maps.onnx', MAPS, 'maps'), folder)
    assert 'Is a directory' in refused(model, folder, '--json', folder)


def test_a_damaged_picture_leaves_no_predictions_file(tmp_path, folder, refused):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    (folder / 'b.png').write_text('damaged')
    assert 'b.png' in refused(model, folder, '--npz', tmp_path / 'predictions.npz')
    assert not list(tmp_path.glob('predictions*'))


def test_names_that_overwrite_each_other(tmp_path, folder, run, refused):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    (tmp_path / 'other').mkdir()
    Image.new('RGB', (60, 40), 'red').save(tmp_path / 'other' / 'a.png')
    pictures = [folder, tmp_path / 'other']
    assert '2 pictures have the name a.png, but x.npz holds each name once' in refused(
        model, *pictures, '--npz', 'x.npz'
    )
    assert '2 pictures have the name a, but drawn holds each name once' in refused(model, *pictures, '--draw', 'drawn')
    assert len(run(model, *pictures)) == 3


def test_pictures_are_not_overwritten(tmp_path, folder, refused):
    model = write_onnx(tmp_path / 'model.onnx', CLASSIFIER, 'classification')
    (folder / 'a.png').rename(folder / 'a.jpg')
    sentence = refused(model, folder, '--draw', folder)
    assert f'--draw {folder} would overwrite the picture {folder / "a.jpg"}: give another folder' in sentence


# Makes all imports fail except the standard library, numpy, onnxruntime and the allowed packages.
ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        root = name.partition('.')[0]
        if root not in sys.stdlib_module_names | {'numpy', 'onnxruntime', 'mmgroupnet_runtime', *ALLOWED}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_alone(program, *arguments, allowed=()):
    program = f'ALLOWED = {list(allowed)}\n{ALONE}\n{program}'
    environ = {**os.environ, 'PYTHONPATH': str(SOURCES)}
    command = [sys.executable, '-c', program, *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


COMMAND = 'from mmgroupnet_runtime.cli import main; main()'


def test_numpy_and_onnxruntime_are_enough(tmp_path):
    model = write_onnx(
        tmp_path / 'model.onnx',
        SEGMENTOR,
        'segmentation',
        resize=[dict(type='resize', width=32, height=32, keep_ratio=True)],
    )
    program = """
import numpy, mmgroupnet_runtime
picture = numpy.full((40, 60, 3), (1, 2, 3), numpy.uint8)
print(mmgroupnet_runtime.load(sys.argv[1])(picture).classes.mean())
"""
    done = run_alone(program, model)
    assert (done.stdout, done.stderr) == ('2.0\n', '')


def test_the_command_needs_pillow_too(tmp_path, folder):
    model = write_onnx(tmp_path / 'model.onnx', DETECTOR, 'detection')
    done = run_alone(COMMAND, model, folder)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('error: pictures are read and drawn by Pillow, which is missing')
    done = run_alone(
        COMMAND,
        model,
        folder,
        '--json',
        tmp_path / 'a.json',
        '--npz',
        tmp_path / 'a.npz',
        '--draw',
        tmp_path / 'drawn',
        '--time',
        allowed=['PIL'],
    )
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    assert lines[:2] == ['a.png: 1 detection: green 0.88', 'b.png: 1 detection: green 0.88']
    assert lines[2].startswith('ms per picture, median of 10: ')
    assert {'a.json', 'a.npz', 'drawn'} < {path.name for path in tmp_path.iterdir()}


def test_the_package_is_a_program():
    done = subprocess.run(
        [sys.executable, '-m', 'mmgroupnet_runtime', '--version'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(SOURCES)},
    )
    assert done.stdout == f'mmgroupnet-run {__version__}\n'
