"""Packaging of mmgroupnet-runtime: compiles the operators of ``csrc/onnxruntime`` into the package.

It needs a checkout, and builds for this machine or for the one that ``MMGROUPNET_RUNTIME_MACHINE`` names.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OPERATORS = ROOT.parent / 'csrc' / 'onnxruntime'
LIBRARY = 'libmmgroupnet_onnxruntime.so'
MACHINE = os.environ.get('MMGROUPNET_RUNTIME_MACHINE', platform.machine())
# CMake's files are kept here, so that only what has changed is compiled again.
BUILD = ROOT / 'build' / MACHINE


def compile_operators() -> Path:
    """Compiles the operators and returns the library.

    Raises:
        CompileError: If CMake or a compiler is missing, or compiling fails.
    """
    if shutil.which('cmake') is None:
        raise CompileError('cmake was not found: install it (apt-get install cmake, or pip install cmake)')
    command = ['cmake', '-S', str(OPERATORS), '-B', str(BUILD)]
    if shutil.which('ninja') is not None:
        command += ['-G', 'Ninja']
    if platform.machine() != MACHINE:
        toolchain = OPERATORS / f'{MACHINE}.cmake'
        if not toolchain.is_file():
            raise CompileError(f'MMGROUPNET_RUNTIME_MACHINE={MACHINE}: {toolchain} is missing')
        command.append(f'-DCMAKE_TOOLCHAIN_FILE={toolchain}')
    try:
        subprocess.run(command, check=True)
        subprocess.run(['cmake', '--build', str(BUILD), '--parallel'], check=True)
    except subprocess.CalledProcessError as error:
        raise CompileError(f'{" ".join(error.cmd)} failed, see above') from error
    return BUILD / LIBRARY


def oldest_glibc(library: Path) -> tuple[int, int]:
    """Version of the oldest glibc that has all symbols that a library needs."""
    versions = re.findall(rb'\0GLIBC_(\d+)\.(\d+)', library.read_bytes())
    return max((int(major), int(minor)) for major, minor in versions)


class BuildOperators(build_py):
    """Adds the library to the package, or to the checkout if the installation is editable."""

    def run(self) -> None:
        super().run()
        package = ROOT / 'src' if self.editable_mode else Path(self.build_lib)
        target = package / 'mmgroupnet_runtime' / 'lib' / LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(compile_operators(), target)


class Wheel(bdist_wheel):
    """A wheel for any Python 3 on Linux with the glibc that the library needs."""

    def get_tag(self) -> tuple[str, str, str]:
        major, minor = oldest_glibc(BUILD / LIBRARY)
        return 'py3', 'none', f'manylinux_{major}_{minor}_{MACHINE}'


class BinaryDistribution(Distribution):
    """Marks the package as specific to one kind of machine."""

    def has_ext_modules(self) -> bool:
        return True


def read_version() -> str:
    """The version of mmgroupnet, which is also the version of this package."""
    scope = {}
    exec((ROOT.parent / 'mmgroupnet' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


setup(
    version=read_version(),
    distclass=BinaryDistribution,
    cmdclass={'build_py': BuildOperators, 'bdist_wheel': Wheel},
)
