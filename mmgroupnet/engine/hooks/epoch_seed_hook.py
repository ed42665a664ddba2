"""Makes a resumed training repeat what an uninterrupted one does."""

import random
from functools import partial

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds all random streams anew at every epoch's start, from the run's seed, the iteration and the process' rank.

    mmengine does not save the states of random generators. With this hook an epoch depends on nothing that ran before
    it but the weights, so that training resumed at an epoch boundary gives the same losses as training that never
    stopped (``randomness=dict(seed=...)``). It also gives the workers that load data another stream in every epoch,
    where mmengine starts all of them with the same one.
    """

    priority = 'VERY_LOW'  # Nothing may draw between this and the epoch's first batch.

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds Python, numpy, torch and the workers that this epoch will start.

        Args:
            runner: The runner; with its ``seed``, which mmengine draws where the config gives none.
        """
        seed = int(np.random.SeedSequence([runner.seed, runner.iter, runner.rank]).generate_state(1)[0] >> 1)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        loader = runner.train_dataloader
        if isinstance(loader.worker_init_fn, partial) and loader.worker_init_fn.func is worker_init_fn:
            loader.worker_init_fn = partial(loader.worker_init_fn, seed=seed)
