"""Runs the operators with random and malformed nodes, see tests/csrc/fuzz_onnxruntime_ops.cpp."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_ops.test_kernels import flags_of_build

ROOT = Path(__file__).parents[2]
OPERATORS = ROOT / 'csrc' / 'onnxruntime'
SOURCE = ROOT / 'tests' / 'csrc' / 'fuzz_onnxruntime_ops.cpp'
needs_compiler = pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')


def compile_fuzzer(folder: Path, *flags: str) -> Path:
    """Compiles csrc/, the operators and the fuzzer into one program."""
    common, by_file = flags_of_build()
    common = [flag for flag in common if not flag.startswith(('-O', '-fopenmp'))]
    common += ['-O1', f'-I{ROOT / "csrc"}', f'-I{OPERATORS / "include"}', *flags]
    kernels = [source for source in sorted((ROOT / 'csrc').glob('*.cpp')) if source.name != 'threads.cpp']
    x86 = os.uname().machine in ('x86_64', 'amd64')
    objects = []
    for source in [*kernels, *sorted(OPERATORS.glob('*.cpp')), SOURCE]:
        objects.append(folder / f'{source.parent.name}_{source.stem}.o')
        own = by_file.get(source.name, []) if x86 else []
        subprocess.run(['g++', *common, *own, '-c', source, '-o', objects[-1]], check=True)
    program = folder / SOURCE.stem
    subprocess.run(['g++', *flags, *objects, '-pthread', '-o', program], check=True)
    return program


def assert_runs(program: Path, rounds: int, seed: int, **environment: str) -> None:
    done = subprocess.run(
        [program, str(rounds), str(seed)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs, errors = (int(part.split()[0]) for part in done.stdout.split(','))
    assert outputs + errors == rounds
    assert min(outputs, errors) > rounds / 5


@needs_compiler
@pytest.mark.slow
def test_with_sanitizers(tmp_path):
    program = compile_fuzzer(tmp_path, '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')
    # A malformed node may cause an allocation that fails; the program must survive this.
    options = 'allocator_may_return_null=1:max_allocation_size_mb=64'
    for kernels in ('', 'portable'):
        for seed in range(2):
            assert_runs(program, 2000, seed, ASAN_OPTIONS=options, MMGROUPNET_KERNEL=kernels)


@needs_compiler
@pytest.mark.slow
def test_threads_do_not_race(tmp_path):
    assert_runs(compile_fuzzer(tmp_path, '-g', '-fsanitize=thread'), 300, 0)
