"""The device: its core, its ONNX Runtime, and the library of our operators."""

import ctypes
import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

from mmgroupnet_runtime.errors import UserError

OLDEST_ONNXRUNTIME = (1, 22)
_LIBRARY = Path(__file__).parent / 'lib' / 'libmmgroupnet_onnxruntime.so'
_CPUINFO = Path('/proc/cpuinfo')
# The key is `CPU part` of a core whose `CPU implementer` is ARM (0x41).
_ARM_CORES = {
    0xD03: 'Cortex-A53',
    0xD04: 'Cortex-A35',
    0xD05: 'Cortex-A55',
    0xD07: 'Cortex-A57',
    0xD08: 'Cortex-A72',
    0xD09: 'Cortex-A73',
    0xD0A: 'Cortex-A75',
    0xD0B: 'Cortex-A76',
    0xD0C: 'Neoverse N1',
    0xD0D: 'Cortex-A77',
    0xD41: 'Cortex-A78',
    0xD42: 'Cortex-A78AE',
}


def library_path() -> str:
    """Returns the path of the library with our operators, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        UserError: If this installation has none.
    """
    if not _LIBRARY.is_file():
        raise UserError(
            f"{_LIBRARY}, the library of mmgroupnet's operators, is missing: run `make runtime` in a checkout; "
            'otherwise install the wheel of this machine again, '
            '`pip install --force-reinstall --no-deps mmgroupnet_runtime-*.whl`'
        )
    return str(_LIBRARY)


def kernel_set() -> str:
    """Returns the name of the instruction set that our operators use here, such as 'avx2' or 'neon'.

    Raises:
        UserError: As :func:`library_path`.
    """
    library = ctypes.CDLL(library_path())
    library.mmg_selected_kernels.restype = ctypes.c_char_p
    return library.mmg_selected_kernels().decode()


def import_onnxruntime() -> ModuleType:
    """Imports ONNX Runtime, after a check that it can run here.

    Raises:
        UserError: If it is missing or too old, or Python is 32-bit.
    """
    if sys.maxsize < 2**32:
        raise UserError(
            'this Python is 32-bit, and there is no 32-bit ONNX Runtime: install a 64-bit system '
            '(on a Raspberry Pi 3 or later: Raspberry Pi OS, 64-bit)'
        )
    # The version is read before the import, because the import of a build for other cores ends the process.
    try:
        version = importlib.metadata.version('onnxruntime')
    except importlib.metadata.PackageNotFoundError:  # Another build of it, such as onnxruntime-gpu, or none.
        version = None
    if version is not None:
        check_onnxruntime(version)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f'onnxruntime cannot be imported ({error}): install it with `pip install "onnxruntime>=1.22"`'
        ) from None
    check_onnxruntime(onnxruntime.__version__)
    return onnxruntime


def check_onnxruntime(version: str) -> None:
    """Checks that a version of ONNX Runtime can run our files on this core.

    Args:
        version: Such as '1.22.1'.

    Raises:
        UserError: If it is too old.
    """
    numbers = tuple(int(number) for number in re.findall(r'\d+', version)[:2])
    if numbers >= OLDEST_ONNXRUNTIME:
        return
    problem = f'onnxruntime {version} is too old'
    # The wheels of 1.21 for aarch64 use instructions beyond ARMv8.0 without checking for them.
    if numbers == (1, 21) and platform.machine() == 'aarch64' and 'asimddp' not in _cpuinfo().get('Features', ''):
        problem += f" and ends with 'Illegal instruction' on this core, {core_name()}"
    raise UserError(f'{problem}: 1.22 or later is needed, `pip install "onnxruntime>=1.22"`')


def core_name() -> str:
    """Returns the name of the first core, such as 'Cortex-A72', or the architecture if it is not known."""
    info = _cpuinfo()
    if 'model name' in info:
        return info['model name']
    implementer, part = info.get('CPU implementer'), info.get('CPU part')
    if implementer == '0x41' and part is not None:
        return _ARM_CORES.get(int(part, 16), f'ARM core {part}')
    return platform.machine()


def _cpuinfo() -> dict[str, str]:
    """Returns the entry of the first core in /proc/cpuinfo."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text(errors='replace').split('\n\n')[0]
    pairs = (line.partition(':') for line in first.splitlines() if ':' in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
