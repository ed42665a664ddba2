"""Random streams depend on the seed, the iteration and the rank."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip
from mmengine.dataset import worker_init_fn

from mmgroupnet.engine.hooks import EpochSeedHook


@pytest.fixture(autouse=True)
def streams_of_the_tests():
    """Restores the global random generators, which the hook seeds."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def start_epoch(rank: int = 0, seed: int = 3, iteration: int = 0) -> SimpleNamespace:
    """Calls the hook at the start of an epoch; returns the data loader."""
    init = partial(worker_init_fn, num_workers=2, rank=rank, seed=seed)
    loader = SimpleNamespace(worker_init_fn=init)
    EpochSeedHook().before_train_epoch(SimpleNamespace(seed=seed, iter=iteration, rank=rank, train_dataloader=loader))
    return loader


def flips() -> list[bool]:
    """The random decisions of an augmentation for 64 images."""
    flip = RandomFlip(prob=0.5)
    return [flip(dict(img=np.zeros((2, 2, 3), np.uint8)))['flip'] for _ in range(64)]


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_ranks_draw_different_augmentations():
    found = []
    for rank in (0, 1):
        start_epoch(rank)
        found.append(flips())
    assert found[0] != found[1]
    start_epoch(0)
    assert flips() == found[0]


@pytest.mark.parametrize('other', [dict(rank=1), dict(seed=4), dict(iteration=4)], ids=str)
def test_every_stream_depends_on_rank_seed_and_iteration(other):
    first = start_epoch().worker_init_fn.keywords['seed'], *draws()
    second = start_epoch(**other).worker_init_fn.keywords['seed'], *draws()
    again = start_epoch().worker_init_fn.keywords['seed'], *draws()
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert first == again
