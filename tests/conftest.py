import os
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

# Without a GPU Triton's interpreter runs its kernels. The variable must be set before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True, scope='module')
def default_scopes_end_with_their_module() -> Iterator[None]:
    """Restores the default scopes: a Runner does not reset its scope, and in later tests types without a scope would
    mean other classes."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(autouse=True, scope='module')
def threads_end_with_their_module() -> Iterator[None]:
    """Restores the number of threads, which benchmarks and tools set: with more threads than cores, test processes slow
    each other down."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def simulated_layers() -> Iterator[None]:
    """Layers run simulated, as in training, also without gradients. Packed models are compared with these layers."""
    from mmgroupnet.layers.packed import simulated  # here, since it imports Triton

    with simulated():
        yield
