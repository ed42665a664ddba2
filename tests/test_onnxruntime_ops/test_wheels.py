"""Builds the wheels of mmgroupnet-runtime in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmgroupnet.version import __version__

ROOT = Path(__file__).parents[2]
LIBRARY = 'mmgroupnet_runtime/lib/libmmgroupnet_onnxruntime.so'
CROSS_COMPILER = 'aarch64-linux-gnu-g++'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which('cmake') and shutil.which('g++')), reason='needs cmake and g++'),
    pytest.mark.skipif(os.uname().machine != 'x86_64', reason='cross compilation starts from x86-64'),
]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp('wheels')
    ignored = shutil.ignore_patterns('__pycache__', 'build', 'dist', 'lib', '*.egg-info')
    for name in ('csrc', 'runtime'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / 'mmgroupnet').mkdir()
    shutil.copy2(ROOT / 'mmgroupnet' / 'version.py', copy / 'mmgroupnet')
    return copy


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, checkout / 'runtime' / 'build_wheels.py']
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def assert_wheel(wheel: Path, checkout: Path, machine: int) -> None:
    major, minor = map(
        int,
        re.fullmatch(
            rf'mmgroupnet_runtime-{re.escape(__version__)}-py3-none-manylinux_(\d+)_(\d+)_\w+\.whl', wheel.name
        ).groups(),
    )
    assert (major, minor) <= (2, 18)
    modules = {str(path.relative_to(checkout / 'runtime' / 'src')) for path in checkout.rglob('src/**/*.py')}
    assert {name for name in contents(wheel) if '.dist-info/' not in name} == {LIBRARY, *modules}
    header = zipfile.ZipFile(wheel).read(LIBRARY)[:20]
    assert header[:4] == b'\x7fELF'
    assert int.from_bytes(header[18:20], 'little') == machine
    name = next(name for name in contents(wheel) if name.endswith('/METADATA'))
    metadata = zipfile.ZipFile(wheel).read(name).decode().splitlines()
    required = [line.removeprefix('Requires-Dist: ') for line in metadata if line.startswith('Requires-Dist: ')]
    assert required == ['numpy>=1.24', 'onnxruntime>=1.22', 'pillow; extra == "pictures"']


def test_both_wheels(checkout):
    if shutil.which(CROSS_COMPILER) is None:
        pytest.skip(f'needs {CROSS_COMPILER}')
    printed = [Path(line) for line in build(checkout).stdout.splitlines()]
    assert sorted(printed) == sorted((checkout / 'runtime' / 'dist').glob('*.whl'))
    host, arm = printed
    assert_wheel(host, checkout, 62)
    assert_wheel(arm, checkout, 183)
    library = checkout / 'runtime' / 'src' / LIBRARY
    assert library.read_bytes() == zipfile.ZipFile(host).read(LIBRARY)


def test_without_a_cross_compiler(checkout, tmp_path):
    """PATH has all programs except those for aarch64."""
    for folder in reversed(os.environ['PATH'].split(os.pathsep)):
        for program in Path(folder).glob('*'):
            if not program.name.startswith('aarch64-'):
                (tmp_path / program.name).unlink(missing_ok=True)
                (tmp_path / program.name).symlink_to(program)
    host, sentence = build(checkout, PATH=str(tmp_path)).stdout.splitlines()
    assert host.endswith('_x86_64.whl')
    assert sentence == (
        'aarch64-linux-gnu-g++ was not found: no wheel for aarch64. Install it with '
        'apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross'
    )


def test_it_installs_from_the_checkout(checkout, tmp_path):
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '--target', tmp_path, checkout / 'runtime'], check=True)
    assert (tmp_path / LIBRARY).is_file()
