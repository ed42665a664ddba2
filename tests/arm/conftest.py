from pathlib import Path

import pytest

from tests.arm import machine


@pytest.fixture(scope='session')
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of csrc/, cross-compiled as setup.py compiles them on ARM; any warning is an error."""
    return machine.compile_kernels(tmp_path_factory.mktemp('kernels'))
