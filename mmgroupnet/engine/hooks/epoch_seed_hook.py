"""Makes resumed training give the same results as uninterrupted training."""

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
    """Reseeds all random streams at the start of every epoch, from the run's seed, the iteration and the process' rank.

    mmengine does not save the states of random generators. With this hook an epoch depends only on the weights and not
    on earlier random numbers, so training resumed at an epoch boundary gives the same losses as training that never
    stopped (``randomness=dict(seed=...)``). It also gives the data loading workers another stream in every epoch;
    mmengine starts all epochs with the same one.
    """

    priority = 'VERY_LOW'  # Nothing may draw random numbers between this and the epoch's first batch.

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds Python, numpy, torch and the workers that this epoch will start.

        Args:
            runner: The runner, with its ``seed``; mmengine draws one if the config has none.
        """
        seed = int(np.random.SeedSequence([runner.seed, runner.iter, runner.rank]).generate_state(1)[0] >> 1)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        loader = runner.train_dataloader
        if isinstance(loader.worker_init_fn, partial) and loader.worker_init_fn.func is worker_init_fn:
            loader.worker_init_fn = partial(loader.worker_init_fn, seed=seed)
