import os
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

# Without a GPU the interpreter runs Triton's kernels. It has to be asked for before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


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


@pytest.fixture
def simulated_layers() -> Iterator[None]:
    """Layers run as they train, also where no gradient is asked for: packed models are compared with these."""
    from mmgroupnet.layers.packed import simulated  # it imports Triton

    with simulated():
        yield
