from pathlib import Path

import pytest

from tests.arm import machine


@pytest.fixture(scope='session')
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Object files of csrc/, cross-compiled with setup.py's flags for ARM; warnings are errors."""
    return machine.compile_kernels(tmp_path_factory.mktemp('kernels'))
