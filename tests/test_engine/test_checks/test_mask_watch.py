"""Checks of masks in the workers of a data loader."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmgroupnet.engine.checks.mask_watch import WatchedPacking, unwatch_masks, watch_masks
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.engine.hooks import LabelRangeHook
from mmgroupnet.engine.launch import build_runner
from mmgroupnet.errors import UserError
from tests.built_runs import segmentation
from tests.processes import run_in_two_processes

GOOD, WRONG, WHITE = np.eye(8, dtype=np.uint8), np.full((8, 8), 5, np.uint8), np.eye(8, dtype=np.uint8) * 255


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr('mmgroupnet.engine.checks.masks.print_log', lambda message, **_: said.append(message))
    return said


def loader(folder, masks, num_workers=0, wrap=None):
    cfg = segmentation(folder, masks).train_dataloader
    cfg.update(num_workers=num_workers, batch_size=1)
    if wrap is not None:
        cfg.dataset = wrap(cfg.dataset)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Runner.build_dataloader(cfg)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_wrong_mask_stops_with_one_sentence(tmp_path, num_workers, capsys):
    data = loader(tmp_path, [GOOD, WRONG], num_workers)
    watch_masks(data.dataset)
    batches = iter(data)
    next(batches)
    with pytest.raises(SystemExit), one_line_errors():
        next(batches)
    if num_workers:
        batches._shutdown_workers()  # When the garbage collector removes the iterator, each worker takes 5 seconds.
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f'error: mask {tmp_path}/mask/1.png holds the ids 5: BaseSegDataset has the 2 classes')


def test_samples_are_what_they_were(tmp_path):
    data = loader(tmp_path, [GOOD])
    plain = next(iter(data))
    watch_masks(data.dataset)
    watched = next(iter(data))
    assert (watched['data_samples'][0].gt_sem_seg.data == plain['data_samples'][0].gt_sem_seg.data).all()
    assert (watched['inputs'][0] == plain['inputs'][0]).all()
    unwatch_masks(data.dataset)
    assert type(data.dataset.pipeline.transforms[-1]).__name__ == 'PackSegInputs'


@pytest.mark.parametrize('num_workers', [0, 2])
def test_ids_of_all_workers_are_kept(tmp_path, num_workers):
    data = loader(tmp_path, [np.zeros((4, 4), np.uint8), GOOD, WHITE], num_workers)
    watched = watch_masks(data.dataset)
    for _ in data:
        pass
    assert watched[0].seen.nonzero().flatten().tolist() == [0, 1, 255]


def test_a_second_watch_is_the_first(tmp_path):
    data = loader(tmp_path, [GOOD])
    assert watch_masks(data.dataset)[0] is watch_masks(data.dataset)[0]


def test_data_sets_inside_wrappers(tmp_path):
    def mixed(dataset):
        pack = dataset.pipeline.pop()
        return dict(
            type='RepeatDataset', times=2, dataset=dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[pack])
        )

    data = loader(tmp_path, [WRONG], wrap=mixed)
    assert len(watch_masks(data.dataset)) == 1
    with pytest.raises(UserError, match='holds the ids 5'):
        next(iter(data))


def test_data_without_masks(tmp_path):
    assert watch_masks(SimpleNamespace(metainfo={})) == []


class TestHook:
    @pytest.mark.parametrize('stage', ['train', 'val', 'test'])
    def test_all_loaders_are_watched(self, tmp_path, stage):
        data = loader(tmp_path, [WRONG])
        runner = SimpleNamespace(model=nn.Module(), **{f'{stage}_dataloader': data})
        getattr(LabelRangeHook(), f'before_{stage}')(runner)
        with pytest.raises(UserError, match='holds the ids 5'):
            next(iter(data))

    def test_workers_that_start_with_the_loop(self, tmp_path):
        """The workers of an iteration-based loop start when the loop is built, before any hook is called."""
        cfg = segmentation(tmp_path, [WRONG])
        cfg.merge_from_dict(
            dict(
                model=dict(type='ReLU'),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
                train_dataloader=dict(num_workers=1),
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1)),
                val_cfg=None,
                val_dataloader=None,
                val_evaluator=None,
                work_dir=str(tmp_path / 'work'),
                experiment_name=tmp_path.name,
            )
        )
        batches = build_runner(cfg).train_loop.dataloader_iterator
        with pytest.raises(UserError, match='holds the ids 5'):
            next(batches)
        batches._iterator._shutdown_workers()

    def test_absent_classes_are_said_after_as_many_iterations_as_an_epoch_has(self, tmp_path, said):
        data = loader(tmp_path, [WHITE, WHITE])
        runner, hook = SimpleNamespace(model=nn.Module(), train_dataloader=data, iter=0), LabelRangeHook()
        hook.before_train(runner)
        for count, (runner.iter, _) in zip((0, 1), enumerate(data), strict=True):
            hook.after_train_iter(runner, 0)
            assert len(said) == count

    def test_absent_classes_are_said_after_the_first_epoch(self, tmp_path, said):
        data = loader(tmp_path, [WHITE, WHITE])
        runner, hook = SimpleNamespace(model=nn.Module(), train_dataloader=data), LabelRangeHook()
        hook.before_train(runner)
        for _ in range(2):
            for _ in data:
                pass
            hook.after_train_epoch(runner)
        assert len(said) == 1
        assert said[0].startswith("class 1 ('thing') never occurs in the masks of the first epoch of training, while")
        assert not isinstance(data.dataset.pipeline.transforms[-1], WatchedPacking)


def absent_classes(rank: int, folder: str) -> list[str]:
    """What a process says after an epoch, given its own part of the data."""
    data, hook, said = loader(Path(folder) / str(rank), [[WHITE], [GOOD]][rank]), LabelRangeHook(), []
    runner = SimpleNamespace(model=nn.Module(), train_dataloader=data)
    hook.before_train(runner)
    for _ in data:
        pass
    with mock.patch('mmgroupnet.engine.checks.masks.print_log', lambda message, **_: said.append(message)):
        hook.after_train_epoch(runner)
    return said


def test_what_another_process_saw_is_not_absent(tmp_path):
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    assert run_in_two_processes(tmp_path, absent_classes, str(tmp_path)) == [[], []]
