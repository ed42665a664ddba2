"""The library of operators for ONNX Runtime, compiled for the tests."""

import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@cache
def build_operators() -> Path:
    """Compiles ``csrc/onnxruntime`` into ``build/`` if it has changed. Parallel test processes wait for each other."""
    for tool in ('cmake', 'g++'):
        if shutil.which(tool) is None:
            pytest.skip(f'needs {tool}')
    folder = ROOT / 'build' / 'onnxruntime'
    folder.mkdir(parents=True, exist_ok=True)
    generator = ['-G', 'Ninja'] if shutil.which('ninja') else []
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ['cmake', '-S', ROOT / 'csrc' / 'onnxruntime', '-B', folder, *generator],
            ['cmake', '--build', folder, '--parallel', str(os.cpu_count())],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / 'libmmgroupnet_onnxruntime.so'
