"""Reads batches of a run's own data without using its loaders, which do not change."""

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import BaseLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmgroupnet.engine.trial.isolation import copy_dataset
from mmgroupnet.engine.trial.stages import NotTriedError, TracedError
from mmgroupnet.errors import UserError, summary

# Sample indices of one batch; for mmdet's video data sets they are pairs of numbers.
Indices = list[int | tuple[int, int]]


@dataclass
class _Failure:
    line: str
    trace: str


class _Samples(Dataset):
    """Returns a sample, or a description of the failure."""

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int | tuple[int, int]) -> object:
        try:
            return self.dataset[index]
        except Exception as error:  # Custom data sets and transforms raise any type.
            return _Failure(summary(error) + self._place(index), traceback.format_exc())

    def _place(self, index: int | tuple[int, int]) -> str:
        try:
            path = self.dataset.get_data_info(index)['img_path']
        except Exception:  # The data set has no pictures, or the annotations cannot be read.
            path = 'no path is known'
        return f' (sample {index}: {path})'


def _collate(collate: Callable[[Any], Any], samples: list) -> object:
    failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    if failure is not None:
        return failure
    try:
        return collate(samples)
    except Exception as error:
        return _Failure(f'{summary(error)} (putting {len(samples)} samples into one batch)', traceback.format_exc())


def _first_batch(loader: DataLoader, cfg: dict, seed: int) -> tuple[Indices, int]:
    """The first batch that a loader's samplers choose in this process, and the size of the last one of an epoch.

    Raises:
        NotTriedError: If the samplers cannot be built and used a second time.
        UserError: If there is no batch at all.
    """
    try:
        first, last_size = _choose(loader, cfg, seed)
    except Exception as error:  # Custom samplers raise any type, and the run built this one without an error.
        raise NotTriedError(f'its samplers cannot be asked for a batch ({summary(error)})') from error
    if not first:
        dataset: Any = loader.dataset
        raise UserError(f'{len(dataset)} samples in batches of {cfg.get("batch_size")} make no batch')
    return first, last_size


def _choose(loader: DataLoader, cfg: dict, seed: int) -> tuple[Indices, int]:
    """Like :func:`_first_batch`, with new samplers: iterating over an ``InfiniteSampler`` changes it."""
    sampler = DATA_SAMPLERS.build(cfg['sampler'], default_args=dict(dataset=loader.dataset, seed=seed))
    if cfg.get('batch_sampler') is None:
        batches = BatchSampler(sampler, cfg['batch_size'], cfg.get('drop_last', False))
    else:
        default_args = dict(sampler=sampler, batch_size=cfg.get('batch_size'))
        batches = DATA_SAMPLERS.build(cfg['batch_sampler'], default_args=default_args)
    first: Indices = list(next(iter(batches), ()))
    if not first or getattr(batches, 'drop_last', True):
        return first, len(first)
    count = len(sampler)
    is_endless = sum(1 for _ in itertools.islice(sampler, count + 1)) > count
    return first, len(first) if is_endless else count % batches.batch_size or len(first)


def _read(loader: DataLoader, batches: list[Indices]) -> list:
    """Reads batches like a loader, in workers if it has some, without changing the loader, its workers or the data set.

    It also reads the first and the last sample of the set, because a missing part often is at one of its ends.
    """
    first = batches[0]
    if all(isinstance(index, int) for index in first):
        dataset: Any = loader.dataset  # torch knows data sets without a length
        ends: list[Indices] = [[index] for index in (0, len(dataset) - 1) if index not in first]
        return _read_all(loader, batches + ends)[: len(batches)]
    return _read_all(loader, batches)


def _read_all(loader: DataLoader, batches: list[Indices]) -> list:
    workers = min(loader.num_workers, len(batches))
    options = {}
    if workers:
        options = dict(
            num_workers=workers,
            worker_init_fn=loader.worker_init_fn,
            timeout=loader.timeout,
            multiprocessing_context=loader.multiprocessing_context,
        )
    samples = _Samples(loader.dataset if workers else copy_dataset(loader.dataset))
    read = []
    for batch in DataLoader(samples, batch_sampler=batches, collate_fn=partial(_collate, loader.collate_fn), **options):
        if isinstance(batch, _Failure):
            raise TracedError(batch.line, batch.trace)
        read.append(batch)
    return read


def read_training_batches(loop: BaseLoop, cfg: dict, seed: int) -> list:
    """Reads the first batch of training and, if the last one of an epoch is smaller, another of that size.

    Args:
        loop: The loop of the training.
        cfg: The config of its loader.
        seed: The run's seed.

    Returns:
        One or two collated batches.

    Raises:
        NotTriedError: If the loader's samplers or data set cannot be copied.
        TracedError: If a sample cannot be read, or samples cannot be collated.
        UserError: If there is no batch at all.
    """
    first, last_size = _first_batch(loop.dataloader, cfg, seed)
    batches = [first]
    epoch = len(loop.dataloader)
    if last_size < len(first) and loop.max_iters // epoch > loop.iter // epoch:  # An epoch will end.
        batches.append(first[:last_size])
    return _read(loop.dataloader, batches)


def read_evaluation_batch(loader: DataLoader, cfg: dict, seed: int) -> object:
    """Reads the first batch of a validation or test.

    Args:
        loader: Its loader.
        cfg: The loader's config.
        seed: The run's seed.

    Raises:
        NotTriedError, TracedError, UserError: As :func:`read_training_batches`.
    """
    first, _ = _first_batch(loader, cfg, seed)
    return _read(loader, [first])[0]
