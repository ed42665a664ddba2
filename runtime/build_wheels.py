"""Builds the wheels of mmgroupnet-runtime into ``runtime/dist``: for this machine, and for aarch64 if there is a
cross compiler. It also copies this machine's library into ``runtime/src``, so the checkout runs without installation.
"""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CROSS_MACHINE = 'aarch64'
CROSS_COMPILER = 'aarch64-linux-gnu-g++'


def build(machine: str) -> Path:
    """Builds the wheel for a machine, without build isolation, so that nothing is downloaded."""
    for former in (ROOT / 'build').glob('lib*'):  # may contain modules that no longer exist
        shutil.rmtree(former)
    dist = ROOT / 'dist'
    for former in dist.glob(f'*_{machine}.whl'):
        former.unlink()
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps']
    environment = {**os.environ, 'MMGROUPNET_RUNTIME_MACHINE': machine}
    subprocess.run([*command, '--wheel-dir', dist, ROOT], env=environment, check=True)
    (wheel,) = dist.glob(f'*_{machine}.whl')
    return wheel


def main() -> None:
    machine = platform.machine()
    wheel = build(machine)
    print(wheel)
    with zipfile.ZipFile(wheel) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith('.so'))
        archive.extract(library, ROOT / 'src')
    if machine == CROSS_MACHINE:
        return
    if shutil.which(CROSS_COMPILER) is None:
        print(
            f'{CROSS_COMPILER} was not found: no wheel for {CROSS_MACHINE}. Install it with '
            'apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross'
        )
        return
    print(build(CROSS_MACHINE))


if __name__ == '__main__':
    main()
