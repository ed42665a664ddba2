from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='module')
def default_scopes_end_with_their_module() -> Iterator[None]:
    """A Runner leaves its default scope behind, and unscoped types of the tests after it would mean something else."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(autouse=True, scope='module')
def threads_end_with_their_module() -> Iterator[None]:
    """Benchmarks and tools set the number of threads; processes of tests that have more than cores wait for each
    other."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
