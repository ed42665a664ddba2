"""The whole library: its dependencies, all kernels, several versions of ONNX Runtime, and its memory use."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mmgroupnet import ops
from mmgroupnet.ops import Connection, Residual
from tests.test_onnxruntime_ops.models import assert_equal, block_node, connect_node, feeds, nhwc
from tests.test_ops.oracle import KERNEL_SETS, PARAMETERS
from tests.test_ops.test_run_block import BLOCKS, input_of, make_block

SCRIPT = Path(__file__).with_name('run_models.py')


def symbols(library: Path, *arguments: str) -> str:
    if shutil.which('objdump') is None:
        pytest.skip('needs objdump')
    return subprocess.run(['objdump', *arguments, library], capture_output=True, text=True, check=True).stdout


def test_it_is_small(library):
    assert library.stat().st_size <= 400_000


def test_it_gives_two_functions_and_needs_the_c_library_alone(library):
    defined = {line.split()[-1] for line in symbols(library, '-T').splitlines() if ' .text' in line}
    assert defined == {'RegisterCustomOps', 'mmg_selected_kernels'}
    needed = set(re.findall(r'NEEDED +(\S+)', symbols(library, '-p')))
    # libgcc_s is the unwinder, which ONNX Runtime needs as well.
    assert {name for name in needed if not name.startswith('ld-linux')} == {'libc.so.6', 'libgcc_s.so.1'}


def test_it_runs_with_an_old_glibc(library):
    """ONNX Runtime 1.22 needs 2.27, newer ones 2.28."""
    versions = re.findall(r'GLIBC_(\d+)\.(\d+)', symbols(library, '-T'))
    assert max((int(major), int(minor)) for major, minor in versions) <= (2, 18)


@pytest.fixture(scope='module')
def cases(tmp_path_factory) -> tuple[Path, list, list[torch.Tensor]]:
    """A folder with inputs, the models, and the results of our ops in torch."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    models, inputs, expected = [], {}, []

    def add(model: onnx.ModelProto, given: dict[str, np.ndarray], out: torch.Tensor) -> None:
        models.append(folder / f'{len(models)}.onnx')
        onnx.save(model, models[-1])
        inputs.update({f'{len(models) - 1}/{name}': array for name, array in given.items()})
        expected.append(out)

    for arguments in BLOCKS.values():
        for connection in (Connection.GATED, Connection.BROADCAST):
            block = make_block(**arguments, connection=connection, num_bases=3, parameters=PARAMETERS, exact=False)
            x = input_of(block, height=21, width=18, exact=False)
            add(block_node(block).model(), feeds(block, x), block.run_op(x))
    block = make_block([dict(residual=Residual.SHORTCUT)], shortcut_size=(2, 32, 7, 5), exact=False)
    x = input_of(block)
    add(block_node(block).model(), feeds(block, x), block.run_op(x))
    x, gate = torch.randn(1, 99, 20, 20), torch.rand(3)
    add(connect_node(3, gate=gate).model(), {'x': nhwc(x)}, ops.connect(x, 3, None, gate))
    np.savez(folder / 'inputs.npz', **inputs)
    return folder, models, expected


def run(library: Path, cases: tuple, outputs: Path, threads: int = 1, **environment: str) -> str:
    """Runs all models and compares the outputs with those of torch; returns the version of ONNX Runtime."""
    folder, models, expected = cases
    arguments = [SCRIPT, library, folder / 'inputs.npz', outputs, threads, *models]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.load(outputs)
    for i, out in enumerate(expected):
        assert_equal(found[str(i)], out)
    return str(found['version'])


@pytest.mark.parametrize('kernels', KERNEL_SETS)
def test_all_kernels_give_the_same_floats(library, cases, tmp_path, kernels):
    if kernels not in ops.available_kernels():
        pytest.skip(f'no {kernels} kernels here')
    run(library, cases, tmp_path / 'outputs.npz', threads=2, MMGROUPNET_KERNEL=kernels)


@pytest.mark.slow
@pytest.mark.parametrize('version', ['1.20.1', '1.22.1', '1.24.4'])
def test_older_onnxruntimes(library, cases, tmp_path, version):
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--dest']
    done = subprocess.run([*command, tmp_path, f'onnxruntime=={version}'], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f'onnxruntime {version} could not be downloaded: {done.stderr.strip().splitlines()[-1]}')
    (wheel,) = tmp_path.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    path = os.pathsep.join([str(tmp_path / 'site'), *filter(None, [os.environ.get('PYTHONPATH')])])
    for threads in (1, 2):
        assert run(library, cases, tmp_path / 'outputs.npz', threads, PYTHONPATH=path) == version


# For each model, prints by how many bytes the process has grown with a session, and after the session was deleted.
MEMORY = """
import gc, os, sys
import onnxruntime

def bytes_used():
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(sys.argv[1])
    return onnxruntime.InferenceSession(model, options)

open_session(sys.argv[2])
for model in sys.argv[2:]:
    before = bytes_used()
    session = open_session(model)
    print(bytes_used() - before)
    del session
    print(bytes_used() - before)
"""


def chain(nodes: int, are_equal: bool) -> onnx.ModelProto:
    """A chain of nodes, each with its own initializers; their weights are all equal or all different."""
    model = block_node(make_block([dict(out_channels=1024)], num_bases=1, in_channels=1024)).model()
    graph, generator = model.graph, np.random.default_rng(0)
    first, bits = graph.node[0], next(array for array in graph.initializer if array.name == 'parameter_0')
    place = list(first.input).index(bits.name)
    for i in range(1, nodes):
        node, other = graph.node.add(), graph.initializer.add()
        other.CopyFrom(bits)
        other.name = f'bits_{i}'
        if not are_equal:
            other.raw_data = generator.bytes(len(bits.raw_data))
        node.CopyFrom(first)
        node.name = f'block_{i}'
        node.input[0], node.input[place], node.output[0] = graph.node[i - 1].output[0], other.name, f'y_{i}'
    graph.output[0].name = graph.node[-1].output[0]
    return model


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_equal_weights_are_kept_once(library, tmp_path):
    """The initializers of both models have the same size, so the difference in memory comes from arranged weights."""
    nodes = 8
    paths = [tmp_path / 'equal.onnx', tmp_path / 'different.onnx']
    for path in paths:
        onnx.save(chain(nodes, path.stem == 'equal'), path)
    done = subprocess.run(
        [sys.executable, '-c', MEMORY, library, *paths],
        env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'},  # freed memory goes back to the system at once
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    equal, rest_of_equal, different, rest_of_different = map(int, done.stdout.split())
    arranged = 1024 * 1024 * 9 // 8  # least number of bytes of one node's arranged weights
    assert different - equal > (nodes - 2) * arranged
    assert max(rest_of_equal, rest_of_different) < 2 * arranged
