"""Runs a function in two gloo processes, and records the collectives that each process issues."""

import socket
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, distributed, multiprocessing

_COLLECTIVES = ('all_reduce', 'all_gather', 'all_gather_into_tensor', 'broadcast', 'reduce_scatter', 'barrier')

Collective = tuple[str, torch.dtype, tuple[int, ...]]


@contextmanager
def noted_collectives():
    """Yields a list to which the name, dtype and shape of every issued collective are appended."""
    noted: list[Collective] = []

    def note(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            tensor = next(arg for arg in reversed(args) if isinstance(arg, Tensor))
            noted.append((name, tensor.dtype, tuple(tensor.shape)))
            return function(*args, **kwargs)

        return call

    patches = [mock.patch.object(distributed, name, note(name, getattr(distributed, name))) for name in _COLLECTIVES]
    for patch in patches:
        patch.start()
    try:
        yield noted
    finally:
        for patch in patches:
            patch.stop()


def _run(rank: int, port: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f'{rank}.pth')
    finally:
        distributed.destroy_process_group()


def run_in_two_processes(folder: Path, function: Callable, *arguments: object) -> list:
    """Runs ``function(rank, *arguments)`` in two processes and returns the two results. The function must be defined at
    the top level of a module and return tensors in dicts and lists."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_run, (port, str(folder), function, arguments), nprocs=2)
    with torch.serialization.safe_globals([torch.Size]):
        return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]
