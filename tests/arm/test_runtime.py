"""The runtime on ARM: the predictions of an exported detector equal those on this machine; the operators' fuzzer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from tests.arm import machine
from tests.onnx_files import RESIZE, binary_fcos, pictures

pytestmark = pytest.mark.arm

RUNTIME = machine.ROOT / 'runtime'


@pytest.fixture(scope='module')
def packages(tmp_path_factory) -> tuple[Path, Path]:
    """Folders with the contents of the wheels of this machine and of ARM, which ``make runtime`` builds."""
    machine.compiler()
    if shutil.which('cmake') is None:
        pytest.skip('there is no cmake: apt-get install cmake')
    done = subprocess.run([sys.executable, RUNTIME / 'build_wheels.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [machine.unpack(Path(wheel), tmp_path_factory.mktemp('package')) for wheel in done.stdout.splitlines()]
    return folders[0], folders[-1]  # an ARM machine builds only one wheel


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('model') / 'model.onnx'
    export(pack(binary_fcos()), path, classes=('a', 'b', 'c'), palette=None, resize=RESIZE)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Three pictures."""
    folder = tmp_path_factory.mktemp('pictures')
    for i, picture in enumerate(pictures(3)):
        assert cv2.imwrite(str(folder / f'{i}.png'), picture)
    return folder


@pytest.fixture(scope='module')
def expected(packages, model, folder, tmp_path_factory) -> dict[str, np.ndarray]:
    """The predictions on this machine."""
    file = tmp_path_factory.mktemp('answers') / 'answers.npz'
    paths = os.pathsep.join(filter(None, [str(packages[0]), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-m', 'mmgroupnet_runtime', model, folder, '--npz', file]
    done = subprocess.run(command, env=os.environ | {'PYTHONPATH': paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


@pytest.mark.parametrize('cpu', machine.CORES)
def test_a_detector_answers_as_on_this_machine(packages, model, folder, expected, tmp_path, cpu):
    file = tmp_path / 'answers.npz'
    arguments = ['-m', 'mmgroupnet_runtime', model, folder, '--npz', file, '--time']
    done = machine.python(cpu).run(*arguments, paths=[packages[1]])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f'{cpu.title()}, kernels neon')
    found = dict(np.load(file))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name.startswith(('boxes', 'scores')):
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-3, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert all(len(expected[f'labels_{picture}']) > 0 for picture in range(3))


@pytest.fixture(scope='module')
def fuzzer(kernels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('operators')
    objects = [*machine.compile_operators(folder), *(path for path in kernels if path.stem != 'threads')]
    source = machine.ROOT / 'tests' / 'csrc' / 'fuzz_onnxruntime_ops.cpp'
    return machine.link_program(source, objects, folder)


@pytest.mark.parametrize('cpu, rounds', [('cortex-a53', 1000), ('cortex-a72', 300)])
def test_fuzzer_of_the_operators(fuzzer, cpu, rounds):
    done = subprocess.run([*machine.emulator(cpu), fuzzer, str(rounds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs, errors = (int(part.split()[0]) for part in done.stdout.split(','))
    assert outputs + errors == rounds
    assert min(outputs, errors) > rounds / 5
