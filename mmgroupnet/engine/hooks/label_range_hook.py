"""Refuses masks that hold other ids than those of the classes."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mmgroupnet.errors import UserError
from mmgroupnet.registry import HOOKS

# An error names so many ids.
_LISTED_IDS = 10


def _innermost(dataset: Dataset) -> Dataset:
    """The (first) dataset inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
        dataset = dataset.dataset if hasattr(dataset, 'dataset') else dataset.datasets[0]
    return dataset


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stops at the first mask with an id that is neither a class nor the one to ignore.

    Otherwise such an id ends training in an assertion of the loss that names no file (on a GPU, of some later kernel),
    and an evaluation silently leaves it out. It concerns the datasets of mmseg.
    """

    priority = 'VERY_HIGH'  # Before the losses see them.

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner.train_dataloader, data_batch)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner.val_dataloader, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._check(runner.test_dataloader, data_batch)

    @staticmethod
    def _check(loader: DataLoader, data_batch: dict | None) -> None:
        """Checks the masks of a batch.

        Raises:
            UserError: Naming the mask's file, the ids, and what is allowed.
        """
        dataset = _innermost(loader.dataset)
        ignored = getattr(dataset, 'ignore_index', None)
        if ignored is None:
            return  # None of mmseg's: its masks, if it has any, do not hold its classes.
        num_classes = len(dataset.metainfo['classes'])
        for sample in data_batch['data_samples']:
            if 'gt_sem_seg' not in sample:
                continue
            mask = sample.gt_sem_seg.data
            wrong = mask[((mask < 0) | (mask >= num_classes)) & (mask != ignored)].unique().tolist()
            if wrong:
                ids = ', '.join(map(str, wrong[:_LISTED_IDS])) + (', ...' if len(wrong) > _LISTED_IDS else '')
                raise UserError(
                    f'mask {sample.get("seg_map_path", "of " + str(sample.get("img_path")))} holds the ids {ids}: '
                    f'{type(dataset).__name__} has the {num_classes} classes 0 to {num_classes - 1} and {ignored} for '
                    'what is ignored; convert the masks (tools/dataset_converters) or give the dataset its classes '
                    '(metainfo, reduce_zero_label)'
                )
