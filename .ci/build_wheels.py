"""Builds a release into ``dist``: the source archive, and from it the wheel with the kernels.

The wheel is for this machine's processors, any Python 3, and any Linux with a glibc no older than its name says.
libstdc++ is linked into the kernels. libgomp is not, so that the loader takes the library of that name that torch has
loaded: with two of them, two thread pools would wait for work on the same cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = 'mmgroupnet/ops/_kernels.so'
# Leaves out the parts of libstdc++ that are not needed, and exports none of its names.
LINKER_FLAGS = '-static-libstdc++ -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,--strip-all'
OPENMP = 'libgomp.so.1'


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command in the checkout."""
    subprocess.run([str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, check=True)


def make_tools(folder: Path) -> Path:
    """Installs the programs of requirements/wheels.txt into a separate environment.

    Args:
        folder: The environment.

    Returns:
        Its folder of programs.
    """
    run(sys.executable, '-m', 'venv', folder)
    run(folder / 'bin/python', '-m', 'pip', 'install', '--quiet', '--no-deps', '-r', ROOT / 'requirements/wheels.txt')
    return folder / 'bin'


def build(dist: Path) -> tuple[Path, Path]:
    """Builds the archive and the wheel; those of other versions are kept.

    Args:
        dist: The folder for both.

    Returns:
        The archive and the wheel.
    """
    tools = make_tools(ROOT / 'build/wheel-tools')
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        run(sys.executable, '-W', 'ignore', 'setup.py', '--quiet', 'sdist', '--dist-dir', made)
        (archive,) = made.glob('*.tar.gz')
        # Without build isolation, so that nothing is downloaded.
        pip = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps')
        run(*pip, '--wheel-dir', made, archive, LDFLAGS=LINKER_FLAGS)
        (plain,) = made.glob('*.whl')
        if KERNELS not in zipfile.ZipFile(plain).namelist():
            sys.exit('error: the kernels could not be compiled, see above: a wheel needs g++ and libstdc++.a')
        repair = (tools / 'python', '-m', 'auditwheel', 'repair', '--exclude', OPENMP, '--wheel-dir', made / 'repaired')
        run(*repair, plain, PATH=f'{tools}{os.pathsep}{os.environ["PATH"]}')
        (wheel,) = (made / 'repaired').glob('*.whl')
        dist.mkdir(exist_ok=True)
        return Path(shutil.copy2(archive, dist)), Path(shutil.copy2(wheel, dist))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in build(ROOT / 'dist'):
        print(path)


if __name__ == '__main__':
    main()
