from collections.abc import Iterator

import pytest
import torch

from mmgroupnet import ops
from mmgroupnet.ops import kernels
from tests.test_ops.oracle import KERNEL_SETS


@pytest.fixture(autouse=True)
def seed_and_threads() -> Iterator[None]:
    """Seeds the random numbers, and restores the number of threads, which some tests change."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compiled() -> list[str]:
    """The names of this machine's kernel sets; the test is skipped if there are none."""
    names = ops.available_kernels()
    if not names:
        pytest.skip('the kernels were not compiled')
    return names


@pytest.fixture(params=[*KERNEL_SETS, 'simulated'])
def kernel_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test with each set of kernels, and with the simulation that runs if no kernels were compiled."""
    name = request.param
    if name == 'simulated':
        monkeypatch.setattr(kernels, 'library', lambda: None)
        yield name
        return
    available = ops.available_kernels()
    if name not in available:
        pytest.skip(f'no {name} kernels here, only {", ".join(available) or "none"}')
    before = ops.selected_kernels()
    ops.select_kernels(name)
    yield name
    ops.select_kernels(before)
