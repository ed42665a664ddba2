from pathlib import Path

import pytest
import torch

from tests.operators import build_operators


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def library() -> Path:
    """The compiled operators; tests are skipped if they cannot be compiled or run."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    return build_operators()
