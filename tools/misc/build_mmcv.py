"""Installs mmcv with its compiled ops into the environment that runs this script.

mmcv publishes no wheel for current torch, so its source is compiled once (about 4 minutes on 2 cores) and the wheel is
kept in ``${XDG_CACHE_HOME:-~/.cache}/mmgroupnet``, in a folder named after everything that the compiled code depends
on. If ``mmcv.ops`` can already be imported, the script does nothing. It needs torch and the packages that mmcv imports
(mmengine, OpenCV, setuptools < 81); to compile, it needs wheel, a C++ compiler and Python's headers.

Environment variables:
    FORCE_CUDA=1: Compiles the CUDA ops even without a GPU (nvcc is needed), and replaces installed ops that lack them.
    MAX_JOBS: Number of files to compile at once. Default: the number of cores, fewer if memory is short. CXX: The C++
    compiler. Default: c++, then g++.

Usage:
    python tools/misc/build_mmcv.py [--preflight] [--onedl]
    mmgroupnet build-mmcv
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

CXX_STANDARD = 20  # torch's headers need it; mmcv's setup.py says 14 or 17
PYTHON_VERSIONS = ((3, 11), (3, 12))
GIB_PER_JOB = 2  # one compilation with torch's headers takes about 1.5 GiB


class Release(NamedTuple):
    """A release of mmcv; every distribution has the package ``mmcv``."""

    distribution: str
    version: str
    mmengine: str  # the distribution of mmengine that belongs to it

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return self.distribution.replace('-', '_')

    def __str__(self) -> str:
        return f'{self.distribution} {self.version}'


UPSTREAM = Release('mmcv', '2.1.0', mmengine='mmengine')
ONEDL = Release('onedl-mmcv', '2.3.6', mmengine='onedl-mmengine')  # the maintained fork


class Torch(NamedTuple):
    """The properties of the installed torch that compiled ops depend on."""

    version: str
    cuda: str | None  # version of CUDA that torch was built with
    has_gpu: bool


def main() -> None:
    parser = argparse.ArgumentParser(description='Install mmcv with its compiled ops, from the cache or by compiling.')
    parser.add_argument(
        '--preflight',
        action='store_true',
        help='only check that this interpreter can make an environment and compile mmcv for it',
    )
    parser.add_argument('--onedl', action='store_true', help=f'{ONEDL}, the maintained fork, instead of {UPSTREAM}')
    args = parser.parse_args()
    cache = cache_folder(os.environ)
    release = ONEDL if args.onedl else UPSTREAM
    if args.preflight:
        preflight(release, cache)
    else:
        install_mmcv(release, cache)


def install_mmcv(release: Release, cache: Path) -> None:
    """Makes ``mmcv.ops`` importable: it already is, or comes from a wheel in ``cache``, or that wheel is compiled."""
    forced = os.environ.get('FORCE_CUDA') == '1'
    if import_error(needs_cuda=forced) is None:
        print('mmcv.ops is installed already.')
        return
    torch = describe_torch()
    check_imports(release)
    cuda = wants_cuda(torch, forced)
    folder = cache / cache_name(release, torch, cuda)
    wheel = cached_wheel(release, folder)
    if wheel is None:
        check_build_tools()
        wheel = build(release, folder, cuda)
    else:
        print(f'{release}: taking {wheel}')
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'install',
            '--quiet',
            '--disable-pip-version-check',
            '--no-deps',
            '--no-index',
            '--force-reinstall',
            str(wheel),
        ],
        check=True,
    )
    error = import_error(needs_cuda=forced)
    if error is not None:
        sys.exit(f'mmcv.ops from {wheel} cannot be imported ({error}): delete that file and try again.')


def import_error(needs_cuda: bool = False) -> str | None:
    """Why ``mmcv.ops`` cannot be imported, in one line; None if it can.

    Args:
        needs_cuda: Counts ops compiled without CUDA as missing. Default: False.
    """
    code = 'import mmcv.ops'
    if needs_cuda:
        code += "; assert mmcv.ops.get_compiling_cuda_version() != 'not available', 'no CUDA ops'"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f'exit status {result.returncode}'])[-1]


# ---- what is asked for ----


def describe_torch() -> Torch:
    """Inspects the installed torch; exits if there is none."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f'torch cannot be imported by {sys.executable} ({error}): install it before mmcv.')
    return Torch(torch.__version__, torch.version.cuda, torch.cuda.is_available())


def wants_cuda(torch: Torch, forced: bool) -> bool:
    """Whether to compile the CUDA ops: if torch, nvcc and a GPU support it, or if they are forced.

    Exits if they are forced but cannot be compiled.
    """
    if not (forced or (torch.cuda and torch.has_gpu)):
        return False
    problem = None
    if torch.cuda is None:
        problem = f'torch {torch.version} is built without CUDA'
    else:
        nvcc = nvcc_version(os.environ)
        if nvcc is None:
            problem = 'nvcc is not found (set CUDA_HOME)'
        elif nvcc.split('.')[0] != torch.cuda.split('.')[0]:
            problem = f'nvcc is of CUDA {nvcc}, torch of CUDA {torch.cuda}'
    if problem is None:
        return True
    if forced:
        sys.exit(f'FORCE_CUDA=1 asks for CUDA ops of mmcv, but {problem}.')
    print(f'mmcv gets its CPU ops only: {problem}.')
    return False


def nvcc_version(environ: Mapping[str, str]) -> str | None:
    """Version of the nvcc that torch would compile with, such as ``13.0``; None if there is no nvcc."""
    home = environ.get('CUDA_HOME') or environ.get('CUDA_PATH')
    nvcc = (
        shutil.which(f'{home}/bin/nvcc')
        if home
        else (shutil.which('nvcc', path=environ.get('PATH')) or shutil.which('/usr/local/cuda/bin/nvcc'))
    )
    if nvcc is None:
        return None
    found = re.search(r'release (\d+\.\d+)', subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout)
    return found and found[1]


# ---- the cache ----


def cache_folder(environ: Mapping[str, str]) -> Path:
    """``$XDG_CACHE_HOME/mmgroupnet``, or ``~/.cache/mmgroupnet`` if that variable is unset or empty."""
    return Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmgroupnet'


def python_tag() -> str:
    """The interpreter as wheels name it, as in ``cp311``."""
    return f'cp{sys.version_info[0]}{sys.version_info[1]}'


def cache_name(release: Release, torch: Torch, cuda_ops: bool) -> str:
    """Name of the folder that keeps a wheel, because the wheel's own name does not include torch and CUDA.

    An example is ``mmcv2.1.0-cp311-x86_64-torch2.14.1-cu130-cpu_ops``.
    """
    version = torch.version.partition('+')[0]
    build_of_torch = f'cu{torch.cuda.replace(".", "")}' if torch.cuda else 'cpu'
    ops = 'cuda_ops' if cuda_ops else 'cpu_ops'
    mmcv = f'{release.distribution}{release.version}'
    return f'{mmcv}-{python_tag()}-{platform.machine()}-torch{version}-{build_of_torch}-{ops}'


def cached_wheel(release: Release, folder: Path) -> Path | None:
    """The wheel in ``folder``; None if there is none yet."""
    return next(iter(sorted(folder.glob(f'{release.stem}-*.whl'))), None)


# ---- what compiling needs ----


def preflight(release: Release, cache: Path) -> None:
    """Exits with one line about what is missing, before torch is downloaded for nothing."""
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        allowed = ' or '.join(f'{major}.{minor}' for major, minor in PYTHON_VERSIONS)
        sys.exit(
            f'{sys.executable} is Python {platform.python_version()}, but the pinned requirements are for '
            f'{allowed}: name such an interpreter with BASE_PYTHON=...'
        )
    pattern = f'{release.distribution}{release.version}-{python_tag()}-*/{release.stem}-*.whl'
    some_wheel = next(cache.glob(pattern), None)
    report_missing(missing_packages(compiles=some_wheel is None, makes_environment=True))


def check_imports(release: Release) -> None:
    """Exits with one line about missing packages that mmcv imports, before it is compiled for nothing."""
    missing = [name for name in ('cv2', 'mmengine', 'pkg_resources') if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f'mmcv imports {", ".join(missing)}, which is missing: '
            f"{sys.executable} -m pip install {release.mmengine} 'opencv-python<5' 'setuptools<81'"
        )


def check_build_tools() -> None:
    """Exits with one line about what is missing for compiling mmcv."""
    report_missing(missing_packages(compiles=True, makes_environment=False))
    missing = [name for name in ('setuptools', 'pkg_resources', 'wheel') if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"mmcv's setup.py needs {', '.join(missing)}: {sys.executable} -m pip install 'setuptools<81' wheel")


def missing_packages(compiles: bool, makes_environment: bool) -> dict[str, str]:
    """The requirements that this machine lacks.

    Args:
        compiles: Checks the requirements for compiling mmcv.
        makes_environment: Checks the requirements of ``python -m venv``.

    Returns:
        The Debian packages, by readable names of what is missing.
    """
    python = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    missing = {}
    if makes_environment and importlib.util.find_spec('ensurepip') is None:
        missing["Python's ensurepip"] = f'{python}-venv'
    if compiles and find_compiler(os.environ) is None:
        missing['a C++ compiler'] = 'g++'
    if compiles and not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        missing['Python.h'] = f'{python}-dev'
    return missing


def report_missing(missing: dict[str, str]) -> None:
    """Exits if anything is missing, with the command that installs it."""
    if missing:
        sys.exit(f'Missing: {", ".join(missing)}. On Debian or Ubuntu: apt-get install {" ".join(missing.values())}')


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """The C++ compiler to use; None if there is none."""
    path = environ.get('PATH')
    if environ.get('CXX'):
        return environ['CXX'] if shutil.which(environ['CXX'].split()[0], path=path) else None
    return next((name for name in ('c++', 'g++') if shutil.which(name, path=path)), None)


# ---- compiling ----


def build(release: Release, folder: Path, cuda: bool) -> Path:
    """Compiles mmcv and keeps the wheel in ``folder``.

    Other processes may do the same at the same time: each compiles in its own folder, and the finished wheel is moved
    to its place atomically.

    Args:
        release: The release to compile.
        folder: Folder for the wheel; it is created if it does not exist.
        cuda: Compile the CUDA ops, too.

    Returns:
        The wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f'build-{os.getpid()}.log'
    began = time.monotonic()
    kind = 'CPU and CUDA' if cuda else 'CPU'
    print(f'{release}: compiling its {kind} ops, once for {folder.name}', flush=True)
    with tempfile.TemporaryDirectory(prefix='build-', dir=folder) as temporary, open(log, 'w') as output:
        work = Path(temporary)
        run_logged(
            [
                sys.executable,
                '-m',
                'pip',
                'download',
                '--disable-pip-version-check',
                '--no-deps',
                '--no-binary',
                release.distribution,
                '--no-build-isolation',
                '--dest',
                str(work),
                f'{release.distribution}=={release.version}',
            ],
            output,
            cwd=work,
        )
        shutil.unpack_archive(next(work.glob(f'{release.stem}-*.tar.gz')), work)
        source = work / f'{release.stem}-{release.version}'
        setup = source / 'setup.py'
        setup.write_text(raise_standard(setup.read_text(encoding='utf-8')), encoding='utf-8')
        environ = build_environment(cuda)
        precompile_header(work, output, environ)
        run_logged(
            [sys.executable, 'setup.py', 'bdist_wheel'],
            output,
            cwd=source,
            env=environ,
            progress=Progress(source, cuda),
        )
        built = next((source / 'dist').glob('*.whl'))
        wheel = folder / built.name
        os.replace(built, wheel)
    log.unlink()
    print(f'{release}: compiled in {minutes(time.monotonic() - began)}, kept in {wheel}')
    return wheel


def raise_standard(setup: str) -> str:
    """mmcv's setup.py with the C++ standard that torch's headers need."""
    return re.sub(r'-std=c\+\+1[47]', f'-std=c++{CXX_STANDARD}', setup)


def build_environment(cuda: bool) -> dict[str, str]:
    """Environment variables of the compilation."""
    environ = dict(os.environ)
    # ninja is installed beside the interpreter, which need not be on the path.
    environ['PATH'] = os.pathsep.join([sysconfig.get_path('scripts'), environ.get('PATH', os.defpath)])
    environ.setdefault('MAX_JOBS', str(jobs(len(os.sched_getaffinity(0)), available_gib())))
    environ['CXX'] = find_compiler(environ)
    # The flags that Python was built with enable debug symbols, which take half of the time.
    environ['CFLAGS'] = f'{environ.get("CFLAGS", "")} -g0'.strip()
    environ['MMCV_WITH_OPS'] = '1'
    environ['FORCE_CUDA'] = '1' if cuda else '0'
    if not cuda:
        environ['CUDA_VISIBLE_DEVICES'] = ''  # mmcv's setup.py would compile for a visible GPU
    return environ


# Prints the flags that setuptools gives to the compiler, then torch's: a precompiled header needs the same flags.
PRINT_FLAGS = """
import setuptools
from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler
from torch.utils.cpp_extension import include_paths
compiler = new_compiler()
customize_compiler(compiler)
print(*compiler.compiler_so[1:], *(f'-I{path}' for path in include_paths()), sep='\\n')
"""


def precompile_header(folder: Path, log: TextIO, environ: dict[str, str]) -> None:
    """Makes g++ parse torch's header once for all files of mmcv; parsing takes two thirds of the time of each file.

    g++ uses a precompiled header if it was made with the same flags, and otherwise reads the header itself, so this can
    make a build slower but not wrong. clang would stop, so other compilers do not use it.

    Args:
        folder: Folder for the header; it must outlive the compilation.
        log: File for the compiler's output.
        environ: Environment variables of the compilation; its ``CFLAGS`` then name the header.
    """
    compiler = environ['CXX'].split()
    version = subprocess.run([*compiler, '--version'], capture_output=True, text=True, env=environ).stdout
    if 'Free Software Foundation' not in version:
        return
    header = folder / 'torch_types.hpp'
    header.write_text('#include <torch/types.h>\n', encoding='utf-8')
    flags = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PRINT_FLAGS],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environ,
        check=True,
    ).stdout.splitlines()
    run_logged(
        [
            *compiler,
            *flags,
            f'-I{sysconfig.get_path("include")}',
            f'-std=c++{CXX_STANDARD}',
            '-x',
            'c++-header',
            str(header),
            '-o',
            f'{header}.gch',
        ],
        log,
        cwd=folder,
        env=environ,
    )
    environ['CFLAGS'] += f' -include {header}'


def jobs(cores: int, gib: float) -> int:
    """Number of files to compile at once with this many cores and this much free memory; at least one."""
    return max(1, min(cores, int(gib // GIB_PER_JOB)))


def available_gib() -> float:
    """Memory that is available without swapping, in GiB."""
    found = re.search(r'^MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text(), re.MULTILINE)
    return int(found[1]) / 2**20


class Progress:
    """Prints how many of mmcv's files are compiled: in place on a terminal, otherwise one line every half minute."""

    def __init__(self, source: Path, cuda: bool) -> None:
        self.source = source
        ops = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
        patterns = ['*.cpp', 'cpu/*.cpp'] + (['cuda/*.cu', 'cuda/*.cpp'] if cuda else [])
        self.total = sum(len(list(ops.glob(pattern))) for pattern in patterns)
        self.in_place = sys.stdout.isatty()
        self.began = self.printed = time.monotonic()

    def update(self) -> None:
        now = time.monotonic()
        if now - self.printed < (1 if self.in_place else 30):
            return
        self.printed = now
        done = len(list((self.source / 'build').rglob('*.o')))
        line = f'mmcv ops {done}/{self.total}, {minutes(now - self.began)}'
        print(f'\r{line:<40}' if self.in_place else line, end='' if self.in_place else '\n', flush=True)

    def close(self) -> None:
        if self.in_place:
            print('\r' + ' ' * 40, end='\r', flush=True)


def run_logged(
    command: list[str], log: TextIO, cwd: Path, env: dict[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Runs a command with its output in ``log``; exits with the end of the log if it fails.

    If this script is interrupted, the command and all processes that it started end, too.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            time.sleep(0.5)
            if progress is not None:
                progress.update()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # ninja and the compilers, too
            process.wait()
        if progress is not None:
            progress.close()
    if process.returncode != 0:
        log.flush()
        tail = '\n'.join(line[:300] for line in Path(log.name).read_text(errors='replace').splitlines()[-20:])
        sys.exit(
            f'{tail}\nmmcv could not be built (exit status {process.returncode}): above is the end of its log, '
            f'{log.name}'
        )


def minutes(seconds: float) -> str:
    """A duration as text, such as ``2 min 05 s``."""
    return f'{int(seconds) // 60} min {int(seconds) % 60:02d} s'


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that folders are cleaned up
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
