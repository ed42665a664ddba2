"""Refuses masks with ids that are not classes."""

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmgroupnet.engine.checks.heads import ignored_ids
from mmgroupnet.engine.checks.mask_watch import WatchedPacking, unwatch_masks, warn_of_absent_classes, watch_masks
from mmgroupnet.registry import HOOKS


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stops at the first mask with several channels or with an id that is neither a class nor the ignored one.

    Without this hook, such an id ends training in an assertion of the loss that names no file (on a GPU in some later
    kernel), and an evaluation silently leaves it out. The workers check the masks; for training only in the first
    epoch, if workers restart for the next. After it, a warning names classes that never occurred although the ignored
    id did. The hook applies to the data sets of mmseg.
    """

    priority = 'VERY_HIGH'  # Before the workers are started.

    def __init__(self) -> None:
        self._watched: list[WatchedPacking] = []

    def watch_from_the_start(self, runner: Runner) -> None:
        """Lets the workers of all loaders that the runner will build check the masks.

        mmengine's iteration-based loop starts its workers when it is built, before it calls any hook.
        """
        build = runner.build_dataloader

        def build_watched(*args: object, **kwargs: object) -> DataLoader:
            loader = build(*args, **kwargs)
            watch_masks(loader.dataset, ignored_ids(runner.model))
            return loader

        runner.build_dataloader = build_watched

    def before_train(self, runner: Runner) -> None:
        """Lets the workers of the training data check the masks."""
        self._watched = watch_masks(runner.train_dataloader.dataset, ignored_ids(runner.model))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Ends the checks after the iterations of one epoch: for an iteration-based loop, the whole run is one
        epoch."""
        if self._watched and runner.iter + 1 == len(runner.train_dataloader):
            self.after_train_epoch(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Warns once of classes that never occurred, and ends the checks for later epochs."""
        for one in self._watched:
            all_reduce(one.seen, 'max')  # each process sees its own part of the data
        warn_of_absent_classes(self._watched, 'the masks of the first epoch of training')
        self._watched = []
        unwatch_masks(runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Lets the workers of the validation data check the masks."""
        watch_masks(runner.val_dataloader.dataset, ignored_ids(runner.model))

    def before_test(self, runner: Runner) -> None:
        """Lets the workers of the test data check the masks."""
        watch_masks(runner.test_dataloader.dataset, ignored_ids(runner.model))
