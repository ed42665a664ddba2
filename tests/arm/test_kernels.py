"""The NEON kernels under qemu: the Cortex-A72 uses kernels with popcount, the other cores kernels with look-up
tables."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arm import machine
from tests.arm.remote_kernels import SERVER

pytestmark = pytest.mark.arm


@pytest.fixture(scope='module')
def fuzzer(kernels, tmp_path_factory) -> Path:
    source = machine.ROOT / 'tests' / 'csrc' / 'fuzz_kernels.cpp'
    return machine.link_program(source, kernels, tmp_path_factory.mktemp('fuzzer'))


@pytest.fixture(scope='module')
def server(kernels, tmp_path_factory) -> Path:
    return machine.link_program(Path(__file__).parent / 'kernel_server.cpp', kernels, tmp_path_factory.mktemp('server'))


@pytest.mark.parametrize('cpu, rounds', [('cortex-a53', 1000), ('cortex-a72', 200)])
def test_fuzzer(fuzzer, cpu, rounds):
    done = subprocess.run([*machine.emulator(cpu), fuzzer, str(rounds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == f'{rounds} rounds with the kernels portable neon'


def test_grid_of_the_ops(server):
    """Runs all tests of tests/test_ops that take a set of kernels with the ARM kernels; see remote_kernels.py."""
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'tests.arm.remote_kernels', 'tests/test_ops', '-k', 'neon']
    environment = os.environ | {SERVER: json.dumps([*machine.emulator('cortex-a53'), str(server)])}
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.match(r'(\d+) passed', summary)
    assert passed and int(passed[1]) >= 400 and 'skipped' not in summary
