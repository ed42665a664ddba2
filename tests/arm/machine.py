"""64-bit ARM on any Linux machine: cross-compiled programs and an ARM Python, both run by qemu.

If a program is missing or a download fails, the functions here skip the calling test and give the reason.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from ast import Assign, literal_eval, parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = 'aarch64-linux-gnu-g++'
EMULATOR = 'qemu-aarch64'


@dataclass(frozen=True)
class Core:
    """Data of a core in /proc/cpuinfo of a device.

    Args:
        part: The core's part number, in hexadecimal.
        features: Names of its instruction set features beyond ARMv8.0.
    """

    part: str
    features: str = ''


# By qemu's names of the cores.
CORES = {
    'cortex-a53': Core('0xd03'),  # Raspberry Pi 3
    'cortex-a72': Core('0xd08'),  # Raspberry Pi 4
    'cortex-a76': Core('0xd0b', 'atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp'),  # Raspberry Pi 5
}

# Debian packages of an ARM Python 3.11.
_RELEASE = 'bookworm'
_PACKAGES = (
    'python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libexpat1 zlib1g libssl3 '
    'libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1'
).split()
# Increase this number when the layout of the folder made from these packages changes.
_LAYOUT = 1
_WHEELS = ('numpy', 'onnxruntime', 'pillow')
_PLATFORMS = ('manylinux_2_28_aarch64', 'manylinux_2_27_aarch64', 'manylinux2014_aarch64')
_KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'


def compiler() -> str:
    """The cross compiler's name."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f'there is no {COMPILER}: apt-get install g++-aarch64-linux-gnu libc6-dev-arm64-cross')
    return COMPILER


def emulator(cpu: str) -> list[str]:
    """The command that runs a program with qemu's model of this core."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f'there is no {EMULATOR}: apt-get install qemu-user')
    return [EMULATOR, '-cpu', cpu]


def flags() -> list[str]:
    """Flags of csrc/ on ARM, read from the source of setup.py, since importing it would run setup()."""
    for statement in parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body:
        if isinstance(statement, Assign) and statement.targets[0].id == 'KERNEL_FLAGS':
            includes = [f'-I{ROOT / folder}' for folder in ('csrc', 'csrc/onnxruntime/include')]
            return [*literal_eval(statement.value), '-Wextra', '-Werror', *includes]
    raise LookupError('setup.py has no KERNEL_FLAGS')


def compile_kernels(folder: Path) -> list[Path]:
    """Compiles csrc/ and returns the object files."""
    return [_compile(source, folder) for source in sorted((ROOT / 'csrc').glob('*.cpp'))]


def compile_operators(folder: Path) -> list[Path]:
    """Compiles csrc/onnxruntime and returns the object files; they replace the kernels' own ``threads.o``."""
    # Only the shared library needs glibc.cpp: a static program already contains these symbols of the C library.
    sources = [source for source in sorted((ROOT / 'csrc' / 'onnxruntime').glob('*.cpp')) if source.stem != 'glibc']
    return [_compile(source, folder) for source in sources]


def link_program(source: Path, kernels: Sequence[Path], folder: Path) -> Path:
    """Compiles a program and links it statically with the kernels."""
    program = folder / source.stem
    subprocess.run([compiler(), '-static', '-fopenmp', _compile(source, folder), *kernels, '-o', program], check=True)
    return program


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f'{source.stem}.o'
    subprocess.run([compiler(), *flags(), '-c', source, '-o', target], check=True)
    return target


def compile_counter(folder: Path) -> Path:
    """Compiles instruction_count.c, qemu's plugin that counts instructions, for this machine."""
    if shutil.which('gcc') is None:
        pytest.skip('there is no gcc')
    library = folder / 'libinstruction_count.so'
    options = ['-shared', '-fPIC', '-O2', '-Wall', '-Wextra', '-Werror']
    subprocess.run(['gcc', *options, Path(__file__).with_name('instruction_count.c'), '-o', library], check=True)
    return library


@dataclass(frozen=True)
class Python:
    """An ARM Python with numpy, onnxruntime and pillow, run by qemu.

    Args:
        command: The command in front of the arguments.
        environment: Environment variables to set.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, paths: Sequence[Path] = (), **options) -> subprocess.CompletedProcess:
        """Runs the ARM Python and captures its output.

        Args:
            arguments: The arguments.
            paths: Folders that are searched first for modules, such as those of :func:`unpack`. Default: none.
            options: As for ``subprocess.run``.

        Returns:
            The process; its return code is not checked.
        """
        environment = os.environ | self.environment | options.pop('env', {})
        environment['PYTHONPATH'] = os.pathsep.join(map(str, (*paths, self.environment['PYTHONPATH'])))
        options = dict(capture_output=True, text=True) | options
        return subprocess.run([*self.command, *map(str, arguments)], env=environment, **options)

    def count(self, counter: Path, *arguments: str | Path, paths: Sequence[Path] = ()) -> list[int]:
        """Runs the ARM Python and counts its instructions.

        Args:
            counter: The plugin from :func:`compile_counter`.
            arguments, paths: As for :meth:`run`.

        Returns:
            Numbers of instructions: all, SIMD, float multiply-adds, loads and stores.

        Raises:
            RuntimeError: If the program fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / 'counts.txt'
            emulator, *rest = self.command
            counted = Python([emulator, '-plugin', f'{counter},out={out}', *rest], self.environment)
            done = counted.run(*arguments, paths=paths)
            if done.returncode != 0:
                raise RuntimeError(f'{arguments} failed under qemu: {done.stderr}')
            return [int(number) for number in out.read_text().split()]


def python(cpu: str) -> Python:
    """An ARM Python on a core of :data:`CORES`; it is downloaded once (about 100 MB) into ``~/.cache/mmgroupnet``.

    Args:
        cpu: Name of the core.
    """
    command = emulator(cpu)
    folder = _fetched_python()
    root = folder / cpu
    interpreter = root / 'usr' / 'bin' / 'python3.11'
    # qemu redirects open() of files such as /proc/cpuinfo to this folder; onnxruntime does not start without them.
    environment = dict(QEMU_LD_PREFIX=str(root), PYTHONPATH=str(folder / 'site'), PYTHONDONTWRITEBYTECODE='1')
    # These make counts reproducible: a fixed hash seed, and no BLAS threads of numpy that spin while idle.
    environment |= dict(PYTHONHASHSEED='0', OPENBLAS_NUM_THREADS='1')
    return Python([*command, str(interpreter)], environment)


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpacks a wheel into a folder and returns the folder, for ``paths`` of :meth:`Python.run`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@cache
def _fetched_python() -> Path:
    wheels = _pinned(_WHEELS)
    key = crc32(repr((_LAYOUT, _RELEASE, _PACKAGES, wheels, CORES)).encode())
    cache_folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmgroupnet'
    folder = cache_folder / f'arm64-python3.11-{key:08x}'
    if folder.exists():
        return folder
    for program in ('apt-get', 'dpkg'):
        if shutil.which(program) is None:
            pytest.skip(f'there is no {program}, which fetches an ARM Python: this needs Debian or Ubuntu')
    if not Path(_KEYRING).exists():
        pytest.skip(
            f'there is no {_KEYRING}, the keys of the archive with the ARM Python: '
            'apt-get install debian-archive-keyring'
        )
    cache_folder.mkdir(parents=True, exist_ok=True)
    # The complete folder is renamed at the end. If another process was faster, its folder is used.
    with tempfile.TemporaryDirectory(dir=cache_folder) as name:
        made = Path(name) / 'made'
        try:
            _fetch_packages(made / 'debian', Path(name) / 'apt')
            _fetch_wheels(made / 'site', wheels, Path(name) / 'wheels')
        except subprocess.CalledProcessError as error:
            pytest.skip(f'an ARM Python could not be fetched: {error}\n{error.stdout}{error.stderr}')
        for cpu, core in CORES.items():
            _make_root(made / cpu, core)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def _pinned(names: Sequence[str]) -> list[str]:
    """Requirements of packages with the versions of requirements/lock.txt."""
    lines = (ROOT / 'requirements' / 'lock.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line.partition('==')[0] in names]


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, capture_output=True, text=True)


def _fetch_packages(root: Path, state: Path) -> None:
    """Downloads and unpacks the Debian packages. apt uses separate lists and caches, so the release of this system does
    not matter, nothing in the system changes, and no root rights are needed."""
    downloads = state / 'downloads'
    for folder in ('lists/partial', 'cache/archives/partial', 'downloads'):
        (state / folder).mkdir(parents=True)
    sources = state / 'sources.list'
    sources.write_text(f'deb [arch=arm64 signed-by={_KEYRING}] http://deb.debian.org/debian {_RELEASE} main\n')
    settings = {
        'APT::Architecture': 'arm64',
        'APT::Architectures': 'arm64',
        'Dir::State': state,
        'Dir::State::lists': state / 'lists',
        'Dir::State::status': '/dev/null',
        'Dir::Cache': state / 'cache',
        'Dir::Etc::sourcelist': sources,
        'Dir::Etc::sourceparts': '-',
        'APT::Sandbox::User': '',
    }
    apt = ['apt-get', '--quiet', *(option for pair in settings.items() for option in ('-o', f'{pair[0]}={pair[1]}'))]
    _run(*apt, 'update')
    _run(*apt, 'download', *_PACKAGES, cwd=downloads)
    root.mkdir(parents=True)
    for package in sorted(downloads.glob('*.deb')):
        _run('dpkg', '-x', package, root)


def _fetch_wheels(site: Path, requirements: Sequence[str], downloads: Path) -> None:
    options = ['--quiet', '--only-binary=:all:', '--no-deps', '--python-version=3.11', '--dest', downloads]
    platforms = [f'--platform={name}' for name in _PLATFORMS]
    _run(sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', *options, *platforms, *requirements)
    for wheel in downloads.glob('*.whl'):
        unpack(wheel, site)


def _make_root(root: Path, core: Core) -> None:
    """Makes a root folder with the files in /proc and /sys by which a Linux kernel describes this core."""
    root.mkdir()
    for name in ('usr', 'lib'):
        (root / name).symlink_to(Path('..') / 'debian' / name)
    lines = [
        'processor\t: 0',
        'BogoMIPS\t: 108.00',
        f'Features\t: fp asimd evtstrm crc32 cpuid {core.features}'.rstrip(),
        'CPU implementer\t: 0x41',
        'CPU architecture: 8',
        'CPU variant\t: 0x0',
        f'CPU part\t: {core.part}',
        'CPU revision\t: 3',
    ]
    (root / 'proc').mkdir()
    (root / 'proc' / 'cpuinfo').write_text('\n'.join(lines) + '\n\n')
    devices = root / 'sys' / 'devices' / 'system' / 'cpu'
    devices.mkdir(parents=True)
    for name in ('possible', 'present', 'online'):
        (devices / name).write_text('0\n')
