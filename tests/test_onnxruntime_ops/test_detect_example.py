"""Compiles runtime/examples/detect.cpp, links it with the library in ONNX Runtime's wheel, and runs it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.test_onnxruntime_ops.models import NAME, block_node, open_session
from tests.test_ops.test_run_block import make_block

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / 'runtime' / 'examples' / 'detect.cpp'
# Debian's libonnxruntime-dev installs the official header here. Our header only declares the parts that we use.
OFFICIAL_HEADER = Path('/usr/include/onnxruntime')
HEADER = ROOT / 'csrc' / 'onnxruntime' / 'include'
FLAGS = ['-std=c++17', '-O1', '-Wall', '-Wextra', '-Werror']


@pytest.fixture(scope='module')
def program(library, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('detect')
    (found,) = (Path(onnxruntime.__file__).parent / 'capi').glob('libonnxruntime.so.*')
    linked = folder / 'libonnxruntime.so.1'  # the name under which the linked program loads it
    linked.symlink_to(found)
    header = OFFICIAL_HEADER if OFFICIAL_HEADER.is_dir() else HEADER
    command = ['g++', *FLAGS, f'-I{header}', SOURCE, linked, f'-Wl,-rpath,{folder}', '-o', folder / 'detect']
    subprocess.run(command, check=True)
    return folder / 'detect'


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """Each pixel is a detection: a binary layer computes its five numbers from the colour, and the index of the largest
    number is the label."""
    block = block_node(make_block([dict(out_channels=5)], num_bases=1, in_channels=3))
    made = block.model()
    graph = made.graph
    nodes = [
        helper.make_node('Cast', ['image'], ['colours'], to=TensorProto.FLOAT),
        helper.make_node('Sub', ['colours', 'middle'], ['x']),
        *graph.node,
        helper.make_node('Reshape', ['y', 'rows'], ['dets']),
        helper.make_node('ArgMax', ['dets'], ['labels'], axis=2, keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.float32(127.5), 'middle'),
        numpy_helper.from_array(np.array([1, -1, 5]), 'rows'),
    ]
    whole = helper.make_model(
        helper.make_graph(
            nodes,
            NAME,
            [helper.make_tensor_value_info('image', TensorProto.UINT8, [1, 'height', 'width', 3])],
            [
                helper.make_tensor_value_info('dets', TensorProto.FLOAT, [1, 'n', 5]),
                helper.make_tensor_value_info('labels', TensorProto.INT64, [1, 'n']),
            ],
            [*graph.initializer, *constants],
        ),
        opset_imports=made.opset_import,
        ir_version=9,
    )
    helper.set_model_props(whole, {'mmgroupnet': json.dumps({'task': 'detection'})})
    path = tmp_path_factory.mktemp('model') / 'model.onnx'
    onnx.save(whole, path)
    return path


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    """A random picture with the channels blue, green and red."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture(scope='module')
def ppm(picture, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('picture') / 'picture.ppm'
    path.write_bytes(b'P6\n7 5\n255\n' + picture[:, :, ::-1].tobytes())
    return path


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize('threads', [1, 2])
def test_detections_are_those_of_python(library, program, model, picture, ppm, threads):
    dets, labels = open_session(library, onnx.load(model)).run(None, {'image': picture[None]})
    lines = [
        f'{label} {score:.4f} {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}'
        for label, (x1, y1, x2, y2, score) in zip(labels[0], dets[0], strict=True)
    ]
    assert len(set(lines)) > 3
    done = run(program, model, library, ppm, -1000, threads)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['{"task": "detection"}', *lines]


def test_detections_below_the_score_are_left_out(library, program, model, ppm):
    assert run(program, model, library, ppm, 1000).stdout == '{"task": "detection"}\n'


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (b'P5\n7 5\n255\n', 'is not a PPM file of type P6'),
        (b'P6\n0 5\n255\n', 'is not a PPM file of type P6'),
        (b'P6\n99999999 99999999\n255\n', 'is not a PPM file of type P6'),
        (b'P6\n7 5\n255\n' + bytes(104), 'ends too early'),
        (b'', 'is not a PPM file of type P6'),
    ],
)
def test_a_damaged_picture(library, program, model, tmp_path, content, sentence):
    (tmp_path / 'bad.ppm').write_bytes(content)
    done = run(program, model, library, tmp_path / 'bad.ppm')
    assert done.returncode == 1
    assert f'bad.ppm {sentence}' in done.stderr


def test_a_missing_library_of_operators(program, model, ppm, tmp_path):
    done = run(program, model, tmp_path / 'none.so', ppm)
    assert done.returncode == 1
    assert 'none.so' in done.stderr


def test_usage(program):
    done = run(program)
    assert done.returncode == 2
    assert 'usage: ' in done.stderr


@pytest.mark.skipif(not shutil.which('aarch64-linux-gnu-g++'), reason='needs aarch64-linux-gnu-g++')
def test_it_compiles_for_arm(tmp_path):
    subprocess.run(
        ['aarch64-linux-gnu-g++', *FLAGS, f'-I{HEADER}', '-c', SOURCE, '-o', tmp_path / 'detect.o'], check=True
    )
