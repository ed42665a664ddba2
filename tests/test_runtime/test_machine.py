import re
import sys

import pytest
from mmgroupnet_runtime import UserError, library_path
from mmgroupnet_runtime.machine import check_onnxruntime, core_name, import_onnxruntime, kernel_set

PI_4 = """processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

processor	: 1
CPU part	: 0xd03
"""
PI_5 = PI_4.replace('0xd08', '0xd0b').replace('crc32', 'crc32 atomics fphp asimdhp asimddp')


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A function that simulates a machine with this /proc/cpuinfo."""

    def make(cpuinfo, machine='aarch64'):
        file = tmp_path / 'cpuinfo'
        if cpuinfo is not None:
            file.write_text(cpuinfo)
        monkeypatch.setattr('mmgroupnet_runtime.machine._CPUINFO', file)
        monkeypatch.setattr('platform.machine', lambda: machine)

    return make


@pytest.mark.parametrize('version', ['1.22', '1.22.1', '1.32.0', '1.100.0', '2.0.0', '1.22.0rc1', '1.23.0.dev20250601'])
def test_versions_that_run(version, board):
    board(PI_4)
    check_onnxruntime(version)


@pytest.mark.parametrize('version', ['1.21.1', '1.19.2', '0.5.0', '1.2.3'])
def test_versions_that_are_too_old(version):
    with pytest.raises(UserError, match=f'^onnxruntime {re.escape(version)} is too old: 1.22 or later is needed, `pip'):
        check_onnxruntime(version)


def test_the_version_that_is_illegal_on_old_cores(board):
    board(PI_4)
    with pytest.raises(UserError, match="too old and ends with 'Illegal instruction' on this core, Cortex-A72: 1.22"):
        check_onnxruntime('1.21.0')
    board(PI_5)
    with pytest.raises(UserError, match='1.21.0 is too old: 1.22'):
        check_onnxruntime('1.21.0')


def test_the_version_is_checked_before_the_import(monkeypatch):
    monkeypatch.setattr('importlib.metadata.version', lambda name: {'onnxruntime': '1.21.0'}[name])
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)  # An import would raise an ImportError.
    with pytest.raises(UserError, match=r'onnxruntime 1.21.0 is too old'):
        import_onnxruntime()


def test_no_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r'onnxruntime cannot be imported \(.*\): install it with `pip install'):
        import_onnxruntime()


def test_a_32_bit_python(monkeypatch):
    monkeypatch.setattr('sys.maxsize', 2**31 - 1)
    with pytest.raises(UserError, match='this Python is 32-bit, .* install a 64-bit system'):
        import_onnxruntime()


@pytest.mark.parametrize(
    ('cpuinfo', 'name'),
    [
        (PI_4, 'Cortex-A72'),
        (PI_5, 'Cortex-A76'),
        (PI_4.replace('0xd08', '0xd99'), 'ARM core 0xd99'),
        (PI_4.replace('0x41', '0x51'), 'aarch64'),
        ('processor : 0\nmodel name : Some CPU @ 2.00GHz\n\n', 'Some CPU @ 2.00GHz'),
        ('', 'aarch64'),
        (None, 'aarch64'),
    ],
)
def test_names_of_cores(board, cpuinfo, name):
    board(cpuinfo)
    assert core_name() == name


def test_the_library_of_this_checkout():
    try:
        path = library_path()
    except UserError:
        pytest.skip('the library is not built, `make runtime`')
    assert path.endswith('mmgroupnet_runtime/lib/libmmgroupnet_onnxruntime.so')
    assert kernel_set().startswith(('portable', 'avx', 'neon'))
