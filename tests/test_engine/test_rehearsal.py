"""Errors that a rehearsal finds before the first step, those that it only warns of, and that it does not change a
run."""

import copy
import gc
import json
import os
import random
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, LOOPS, METRICS, MODELS, RUNNERS
from mmengine.runner import IterBasedTrainLoop, ValLoop
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn
from torch.utils.data import Dataset

from mmgroupnet.engine.hooks import EpochSeedHook
from mmgroupnet.engine.launch import CPUDistributedDataParallel, build_runner
from mmgroupnet.engine.rehearsal import RehearsalHook
from mmgroupnet.engine.training import run_training
from mmgroupnet.engine.trial.isolation import copy_metric, copy_model, isolated
from mmgroupnet.engine.trial.stages import Stages
from mmgroupnet.errors import UserError
from tests.processes import run_in_two_processes
from tests.test_engine.test_training import losses
from tests.tiny_run import load_tiny_run


class RehearsedNumbers(Dataset):
    """Samples of eight numbers and their sum. They depend on random numbers and on the count of samples read so far."""

    metainfo = dict(classes=('sum',))

    def __init__(self, size=6, broken=()):
        self.size = size
        self.broken = broken
        self.given = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f'number {index} is gone')
        self.given += 1
        inputs = torch.arange(8.0) * (index + 1) + np.random.rand() + random.random() + torch.rand(8) + self.given
        return dict(inputs=inputs, target=inputs.sum())


class RehearsedModel(BaseModel):
    """A linear layer behind a batch norm; the norm refuses a batch of one."""

    def __init__(self, prepared=True):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout()
        self.out = nn.Linear(8, 1)
        self.prepared = prepared
        self.modes = []

    def forward(self, inputs, target, mode):
        self.modes.append(mode)
        inputs, target = torch.stack(list(inputs)), torch.stack(list(target))
        out = self.out(self.dropout(self.norm(inputs)))[:, 0]
        if mode == 'loss':
            return dict(loss=(out - target).square().mean())
        assert self.prepared
        return [dict(error=error) for error in out - target]


class RehearsedMetric(BaseMetric):
    """The mean error. Options: fail unless there are ``wanted`` results, write a file, return every single result."""

    default_prefix = 'toy'

    def __init__(self, wanted=None, out_file_path=None, listed=False):
        super().__init__()
        self.wanted = wanted
        self.out_file_path = out_file_path
        self.listed = listed

    def process(self, data_batch, data_samples):
        self.results += [float(sample['error']) for sample in data_samples]

    def compute_metrics(self, results):
        if self.wanted not in (None, len(results)):
            raise RuntimeError(f'{len(results)} of {self.wanted} results')
        if self.out_file_path:
            assert not Path(self.out_file_path).exists()
            Path(self.out_file_path).write_text(str(len(results)))
        single = {f'error{number}': result for number, result in enumerate(results)} if self.listed else {}
        return dict(error=sum(results) / len(results), **single)


class RehearsedHook(Hook):
    """Prepares the model for validation; without it the model fails."""

    def before_val(self, runner):
        runner.model.prepared = True


class RehearsedNormHook(Hook):
    """Sets a hook on a norm, which lean training would bypass."""

    def before_train(self, runner):
        runner.model.backbone.stages[0][0].units[0].norm.register_forward_hook(lambda *_: None)


class RehearsedLoop(IterBasedTrainLoop):
    """A loop with its own training step."""

    def run_iter(self, data_batch):
        super().run_iter(data_batch)


class RehearsedValLoop(ValLoop):
    """A loop with its own validation."""

    def run(self):
        return super().run()


@pytest.fixture(scope='module', autouse=True)
def _registered():
    parts = [
        (DATASETS, RehearsedNumbers),
        (MODELS, RehearsedModel),
        (METRICS, RehearsedMetric),
        (HOOKS, RehearsedHook),
        (HOOKS, RehearsedNormHook),
        (LOOPS, RehearsedLoop),
        (LOOPS, RehearsedValLoop),
    ]
    for registry, part in parts:
        registry.register_module(module=part)
    yield
    for registry, part in parts:
        registry.module_dict.pop(part.__name__)


def numbers_run(folder, **overrides):
    """The config of a run with two epochs of three batches with two samples each. An override with ``__`` in its name
    sets the value at this path of the config; others replace a part of the config."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
        dataset=dict(type='RehearsedNumbers'),
    )
    cfg = Config(
        dict(
            model=dict(type='RehearsedModel'),
            train_dataloader=copy.deepcopy(loader),
            val_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg=dict(),
            val_evaluator=dict(type='RehearsedMetric'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            log_processor=dict(window_size=1),
            randomness=dict(seed=0),
            launcher='none',
        )
    )
    work = overrides.pop('work', 'work')
    for key, value in overrides.items():
        if '__' in key:
            cfg.merge_from_dict({key.replace('__', '.'): value})
        else:
            cfg[key] = value
    cfg.work_dir = str(folder / work)
    cfg.experiment_name = f'{folder.name}_{work}'
    return cfg


def log_of(cfg):
    return next(Path(cfg.work_dir).glob('*/*.log')).read_text()


def refusal(cfg):
    """The error of a run in which the rehearsal fails, before the first step."""
    with pytest.raises(UserError, match='the rehearsal failed in ') as caught:
        run_training(cfg)
    assert 'Epoch(train)' not in log_of(cfg)
    assert not list(Path(cfg.work_dir).glob('**/*.pth'))
    return caught.value


class TestLeavesNoTrace:
    @pytest.mark.parametrize(
        'kind',
        [
            dict(),
            dict(train_dataloader__num_workers=1, train_dataloader__persistent_workers=True),
            dict(
                train_dataloader__sampler=dict(type='InfiniteSampler'),
                train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3),
            ),
            dict(
                train_dataloader__sampler=dict(type='InfiniteSampler'),
                train_dataloader__num_workers=1,
                train_dataloader__persistent_workers=True,
                train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3),
                randomness=dict(seed=None),
            ),
            dict(optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-3), accumulative_counts=2)),
        ],
        ids=['epochs', 'epochs, workers', 'iterations', 'iterations, workers', 'two batches a step'],
    )
    def test_losses(self, tmp_path, monkeypatch, kind):
        # The hook would hide random numbers drawn by the rehearsal, since it seeds the generators again.
        monkeypatch.setattr(EpochSeedHook, 'before_train_epoch', lambda self, runner: None)
        monkeypatch.setattr('mmengine.runner.utils.sync_random_seed', lambda: 3)
        found = []
        for rehearse in (False, True):
            cfg = numbers_run(tmp_path, work=f'work{rehearse}', **kind)
            run_training(cfg, rehearse=rehearse)
            found.append(losses(Path(cfg.work_dir)))
            assert ('Rehearsal passed' in log_of(cfg)) == rehearse
        assert found[0] == found[1]
        assert len(set(found[0].values())) == 6

    def test_parts_of_the_run(self, tmp_path):
        cfg = numbers_run(tmp_path, custom_hooks=[dict(type='EMAHook')])
        runner = build_runner(cfg)
        states = []

        class Probe(Hook):
            priority = 'LOWEST'

            def before_train(self, runner):
                hub = runner.message_hub
                ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
                states.append(
                    copy.deepcopy(
                        dict(
                            weights=runner.model.state_dict(),
                            averaged=ema.ema_model.state_dict(),
                            gradients=[parameter.grad for parameter in runner.model.parameters()],
                            attributes=(runner.model.training, runner.model.modes),
                            optimizer=runner.optim_wrapper.state_dict(),
                            counts=runner.optim_wrapper._inner_count,
                            random=(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
                            hub=(dict(hub.log_scalars), dict(hub.runtime_info)),
                            results=[metric.results for metric in runner.val_evaluator.metrics],
                            given=(runner.train_dataloader.dataset.given, runner.val_dataloader.dataset.given),
                            classes=runner.visualizer.dataset_meta,
                            hooks={type(hook).__name__: repr(vars(hook)) for hook in runner.hooks[:-3]},
                            files=sorted(path.name for path in Path(runner.work_dir).iterdir()),
                            initialized=torch.distributed.is_initialized(),
                        )
                    )
                )

        for hook in (Probe(), RehearsalHook(), Probe()):
            runner.register_hook(hook)
        runner.train()
        assert 'Rehearsal passed: reading training data' in log_of(cfg)
        before, after = states
        torch.testing.assert_close(after.pop('weights'), before.pop('weights'), rtol=0, atol=0)
        torch.testing.assert_close(after.pop('averaged'), before.pop('averaged'), rtol=0, atol=0)
        torch.testing.assert_close(after.pop('random')[2], before.pop('random')[2], rtol=0, atol=0)
        assert after == before


class TestFinds:
    """Errors in runs of mmdet."""

    @pytest.fixture(autouse=True)
    def _comparisons(self, monkeypatch):
        """The checks of built parts would find some of the errors before the rehearsal, so they are switched off."""
        monkeypatch.setattr('mmgroupnet.engine.training.check_built_parts', lambda *_: None)

    def test_a_pipeline_without_scale_factor(self, tmp_path):
        cfg = load_tiny_run(tmp_path)
        cfg.val_dataloader.dataset.pipeline[-1].meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape')
        error = refusal(cfg)
        assert re.sub(r'line \d+', 'line ...', str(error)) == (
            "the rehearsal failed in a validation batch: AssertionError: `assert img_meta.get('scale_factor') is not "
            'None` (mmdet.models.dense_heads.base_dense_head, line ...). Look at model.test_cfg and at what '
            'val_dataloader.dataset.pipeline packs, its meta_keys among it. --no-rehearsal trains without it'
        )
        assert isinstance(error.__cause__, AssertionError)

    @pytest.mark.parametrize('score_thr', [0.0, 0.99])
    def test_an_evaluator_of_another_file(self, tmp_path, score_thr):
        """The error is also found if the model predicts nothing; mmdet's metric alone does not report it then."""
        cfg = load_tiny_run(tmp_path, model__test_cfg__score_thr=score_thr)
        cfg.val_evaluator.ann_file = cfg.val_evaluator.ann_file.replace('val.json', 'train.json')
        assert 'in validation by CocoMetric: AssertionError: Results do not correspond' in str(refusal(cfg))

    @pytest.mark.parametrize('number', [8, 11])
    def test_an_unreadable_picture(self, tmp_path, number):
        """The rehearsal reads the first and the last picture."""
        cfg = load_tiny_run(tmp_path)
        picture = tmp_path / f'data/images/{number}.png'
        picture.write_bytes(b'no picture')
        message = str(refusal(cfg))
        assert message.startswith('the rehearsal failed in reading validation data: AssertionError: failed to load')
        assert f'(sample {number - 8}: {picture})' in message

    def test_names_that_repeat_the_folder(self, tmp_path):
        cfg = load_tiny_run(tmp_path, train_dataloader__num_workers=1)
        file = tmp_path / 'data/annotations/train.json'
        content = json.loads(file.read_text())
        for image in content['images']:
            image['file_name'] = 'images/' + image['file_name']
        file.write_text(json.dumps(content))
        error = refusal(cfg)
        assert 'reading training data: FileNotFoundError: ' in str(error)
        assert f'{tmp_path}/data/images/images/' in str(error)
        # The cause has the traceback of the worker process.
        assert 'in __getitem__' in str(error.__cause__)

    @pytest.mark.parametrize(
        ('evaluator', 'found'),
        [
            (dict(type='mmseg.IoUMetric'), "IoUMetric: KeyError: 'pred_sem_seg'"),
            (dict(metric=['bbox', 'segm']), "CocoMetric: KeyError: 'segm is not in results'"),
        ],
    )
    def test_a_metric_that_does_not_know_the_task(self, tmp_path, evaluator, found):
        cfg = load_tiny_run(tmp_path)
        cfg.val_evaluator = evaluator if 'type' in evaluator else cfg.val_evaluator | evaluator
        assert f'the rehearsal failed in validation by {found}' in str(refusal(cfg))

    def test_a_head_of_another_size(self, tmp_path):
        cfg = load_tiny_run(tmp_path, model__bbox_head__in_channels=16)
        assert 'a training batch: RuntimeError: Given groups=1, weight of size [8, 16, 3, 3]' in str(refusal(cfg))


class TestFindsInAnyRun:
    def test_a_last_batch_of_one(self, tmp_path):
        message = str(refusal(numbers_run(tmp_path, train_dataloader__dataset__size=5)))
        assert 'a training batch as small as the last one: ValueError: Expected more than 1 value per chan' in message
        assert 'Give train_dataloader drop_last=True or another batch_size' in message

    @pytest.mark.parametrize(
        'without',
        [
            dict(train_dataloader__drop_last=True),
            dict(train_dataloader__sampler=dict(type='InfiniteSampler'), train_cfg=dict(by_epoch=False, max_iters=2)),
            dict(train_cfg=dict(by_epoch=False, max_iters=2)),
        ],
        ids=['dropped', 'endless', 'never reached'],
    )
    def test_no_last_batch_of_one(self, tmp_path, without):
        cfg = numbers_run(tmp_path, train_dataloader__dataset__size=5, **without)
        run_training(cfg)
        assert 'as small as the last one' not in log_of(cfg)

    def test_no_batch_at_all(self, tmp_path):
        parts = dict(train_dataloader__batch_size=7, train_dataloader__drop_last=True)
        message = str(refusal(numbers_run(tmp_path, **parts)))
        assert 'reading training data: 6 samples in batches of 7 make no batch' in message

    @pytest.mark.parametrize('workers', [0, 1])
    def test_the_last_sample(self, tmp_path, workers):
        parts = dict(val_dataloader__dataset__broken=[5], val_dataloader__num_workers=workers)
        message = str(refusal(numbers_run(tmp_path, **parts)))
        assert 'reading validation data: OSError: number 5 is gone (sample 5: no path is known)' in message

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / 'file').write_text('')
        cfg = numbers_run(tmp_path, default_hooks__checkpoint=dict(type='CheckpointHook', out_dir=f'{tmp_path}/file'))
        message = str(refusal(cfg))
        assert 'writing a checkpoint: NotADirectoryError' in message
        assert f'Look at the free space and the rights of {tmp_path}/file/work' in message

    def test_a_best_checkpoint_by_no_metric(self, tmp_path):
        saving = dict(type='CheckpointHook', save_best='toy/eror', rule='less')
        cfg = numbers_run(tmp_path, default_hooks__checkpoint=saving, val_dataloader__batch_size=6)
        assert "save_best='toy/eror' is none of toy/error (did you mean 'toy/error'?)" in str(refusal(cfg))

    def test_the_traceback_is_the_cause(self, tmp_path):
        cause = refusal(numbers_run(tmp_path, model__prepared=False)).__cause__
        assert isinstance(cause, AssertionError)
        assert cause.__traceback__ is not None


class TestLetsPass:
    """Failures that only cause a warning: the rehearsal itself may be their reason, or training is not affected."""

    @pytest.mark.parametrize(
        ('parts', 'remark'),
        [
            (
                dict(val_evaluator__wanted=6),
                'the rehearsal failed in validation by RehearsedMetric: RuntimeError: 2 of 6 results. ',
            ),
            (
                dict(model__prepared=False, custom_hooks=[dict(type='RehearsedHook')]),
                'Training goes on: the rehearsal does not call RehearsedHook, and that may be why',
            ),
            (
                dict(train_cfg=dict(type='RehearsedLoop', max_iters=2)),
                'training is left out: RehearsedLoop has steps of its own',
            ),
            (dict(val_cfg__type='RehearsedValLoop'), 'validation is left out: RehearsedValLoop has steps of its own'),
            (
                dict(train_dataloader__sampler=None),
                'reading training data is left out: its samplers cannot be asked for a batch (TypeError: ',
            ),
            (
                dict(
                    val_evaluator__listed=True,
                    default_hooks__checkpoint=dict(type='CheckpointHook', save_best='toy/error5', rule='less'),
                ),
                "save_best='toy/error5' is none of toy/error, toy/error0, toy/error1 (did you mean 'toy/error'?). "
                'Look at default_hooks.checkpoint. Training goes on: a metric may give more values after the whole set',
            ),
        ],
    )
    def test_with_a_warning(self, tmp_path, parts, remark):
        cfg = numbers_run(tmp_path, **parts)
        run_training(cfg)
        log = log_of(cfg)
        assert remark in log
        assert log.index(remark) < re.search(r'(Epoch|Iter)\(train\)', log).start()

    def test_epochs_of_a_few_batches(self, tmp_path):
        cfg = numbers_run(tmp_path, train_dataloader__num_batch_per_epoch=2)
        run_training(cfg)
        assert 'left out' not in log_of(cfg)

    def test_a_metric_that_needs_the_whole_set_has_it(self, tmp_path):
        """If the rehearsal gives the metric the whole set, a failure is an error."""
        cfg = numbers_run(tmp_path, val_evaluator__wanted=7, val_dataloader__batch_size=6)
        assert 'RehearsedMetric: RuntimeError: 6 of 7 results' in str(refusal(cfg))

    def test_a_test_set_that_is_not_there(self, tmp_path):
        cfg = numbers_run(tmp_path)
        cfg.test_cfg, cfg.test_evaluator = dict(), cfg.val_evaluator
        cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.test_dataloader.dataset.broken = [0]
        run_training(cfg)
        assert (
            'the rehearsal failed in reading test data: OSError: number 0 is gone (sample 0: no path is known). Look '
            'at test_dataloader and its dataset. Training goes on: it does not need the test set'
        ) in log_of(cfg)

    def test_a_test_set_that_was_validated(self, tmp_path):
        cfg = numbers_run(tmp_path)
        cfg.test_cfg, cfg.test_evaluator = dict(), cfg.val_evaluator
        cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.test_dataloader.batch_size = 1
        run_training(cfg)
        assert 'test' not in log_of(cfg).split('Rehearsal passed')[1].splitlines()[0]

    def test_a_run_that_never_validates(self, tmp_path):
        cfg = numbers_run(tmp_path, model__prepared=False, train_cfg__val_begin=9)
        run_training(cfg)
        assert 'validation' not in log_of(cfg).split('Rehearsal passed')[1].splitlines()[0]

    def test_a_metric_that_writes_a_file(self, tmp_path):
        file = tmp_path / 'errors.txt'
        run_training(numbers_run(tmp_path, val_evaluator__out_file_path=str(file), train_cfg__max_epochs=1))
        assert file.read_text() == '6'

    @pytest.mark.parametrize('part', ['model', 'val_dataloader', 'val_evaluator'])
    def test_parts_that_cannot_be_copied(self, tmp_path, monkeypatch, part):
        kind = dict(model=RehearsedModel, val_dataloader=RehearsedNumbers, val_evaluator=RehearsedMetric)[part]

        def refuse(self, memo):
            raise TypeError('cannot pickle a lock')

        monkeypatch.setattr(kind, '__deepcopy__', refuse, raising=False)
        cfg = numbers_run(tmp_path, train_dataloader__num_workers=1)
        run_training(cfg)
        stage = dict(
            model='training and validation', val_dataloader='reading validation data', val_evaluator='validation by'
        )[part]
        assert str(stage) in log_of(cfg)
        assert f' is left out: {kind.__name__} cannot be copied (TypeError: cannot pickle a lock)' in log_of(cfg)

    def test_a_finished_run(self, tmp_path):
        cfg = numbers_run(tmp_path)
        run_training(cfg)
        again = numbers_run(tmp_path, model__prepared=False)
        checkpoint = tmp_path / 'work' / 'epoch_2.pth'
        written = checkpoint.stat().st_mtime_ns
        run_training(again, resume=str(checkpoint))
        assert checkpoint.stat().st_mtime_ns == written  # nothing was left to train

    def test_options_of_workers_without_workers(self, tmp_path):
        """For example if ``--cfg-options`` sets num_workers to 0."""
        parts = dict(val_dataloader__persistent_workers=True, train_dataloader__prefetch_factor=2)
        cfg = numbers_run(tmp_path, train_cfg__max_epochs=1, **parts)
        run_training(cfg)
        assert (tmp_path / 'work/epoch_1.pth').exists()

    def test_flexible_runner(self, tmp_path):
        cfg = numbers_run(tmp_path, runner_type='FlexibleRunner', env_cfg=dict(dist_cfg=dict(backend='gloo')))
        runner = RUNNERS.build(cfg)
        runner.register_hook(RehearsalHook())
        runner.train()
        assert 'Rehearsal passed: ' in log_of(cfg)


class TestCopyOfAModel:
    def test_functions_on_modules_run_the_copy(self):
        model = RehearsedModel()
        turn_on_activation_checkpointing(model, ['norm'])
        copied = copy_model(model)
        copied(torch.rand(4, 8, requires_grad=True), torch.rand(4), mode='loss')['loss'].backward()
        assert copied.norm.num_batches_tracked > 0
        assert copied.norm.weight.grad is not None
        assert model.norm.num_batches_tracked == 0
        assert model.norm.weight.grad is None

    def test_weights_that_are_no_leaves(self):
        model = nn.utils.weight_norm(nn.Linear(3, 3))
        copied = copy_model(nn.Sequential(model))
        torch.testing.assert_close(copied[0](torch.ones(1, 3)), model(torch.ones(1, 3)))


@pytest.mark.parametrize(
    ('name', 'value', 'copied'),
    [
        ('out_file_path', 'some/values.pkl', 'folder/values.pkl'),
        ('outfile_prefix', 'some/values', 'folder/values'),
        ('output_dir', Path('some/out'), Path('folder/out')),
        ('layout', 'coco', 'coco'),
    ],
)
def test_where_the_copy_of_a_metric_writes(tmp_path, monkeypatch, name, value, copied):
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    metric = RehearsedMetric()
    setattr(metric, name, value)
    assert getattr(copy_metric(metric, Path('folder')), name) == copied


class TestStages:
    def test_memory_of_a_failure_is_freed_at_once(self):
        stages, seen = Stages(), []

        def fail():
            model = nn.Linear(2, 2)
            seen.append(weakref.ref(model))
            raise torch.OutOfMemoryError('CUDA out of memory')

        gc.disable()  # CUDA's allocator does not call the garbage collector
        try:
            stages.take('a training batch', 'a hint', fail)
            assert seen[0]() is None
        finally:
            gc.enable()
        ((line, error),) = stages.remarks
        assert 'OutOfMemoryError: CUDA out of memory. a hint. Training goes on: ' in line
        assert 'in fail' in str(error)  # the traceback, for the log

    def test_ops_without_cuda_kernels_get_their_own_hint(self):
        def fail():
            raise RuntimeError('sigmoid_focal_loss_forward_impl: implementation for device cuda:0 not found.')

        with pytest.raises(UserError, match='compiled without a CUDA toolkit: install one .* CUDA_VISIBLE_DEVICES='):
            Stages().take('a training batch', 'Compare the classes', fail)


def test_a_gpu_that_is_lost_does_not_hide_why(monkeypatch):
    def refuse():
        raise RuntimeError('device-side assert triggered')

    runner = SimpleNamespace(
        logger=MMLogger.get_current_instance(),
        message_hub=SimpleNamespace(log_scalars={}, runtime_info={}),
        visualizer=SimpleNamespace(dataset_meta=None),
    )
    with pytest.raises(UserError, match='why'), isolated(runner):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'empty_cache', refuse)
        raise UserError('why')


def _train_in_two_processes(rank, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    for registry, part in ((DATASETS, RehearsedNumbers), (MODELS, RehearsedModel), (METRICS, RehearsedMetric)):
        registry.register_module(module=part)
    wrapper = dict(type=CPUDistributedDataParallel.__name__, broadcast_buffers=False)
    parts = dict(launcher='pytorch', model_wrapper_cfg=wrapper, train_dataloader__dataset__size=8)
    # Sample 1 cannot be read; only the second process reads it.
    cfg = numbers_run(Path(folder), work='broken', val_dataloader__dataset__broken=[1], **parts)
    try:
        run_training(cfg)
    except UserError as error:
        message = str(error)
    found = []
    for rehearse in (False, True):
        cfg = numbers_run(Path(folder), work=f'work{rehearse}', **parts)
        model = run_training(cfg, rehearse=rehearse)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    return [torch.tensor(list(message.encode())), *found]


def test_two_processes(tmp_path):
    """If the rehearsal fails in one process, both processes stop. If it passes, the weights after training equal those
    of a run without a rehearsal."""
    first, second = run_in_two_processes(tmp_path, _train_in_two_processes, str(tmp_path))
    failure = 'the rehearsal failed in reading validation data: OSError: number 1 is gone'
    assert bytes(second[0].tolist()).decode().startswith(failure)
    assert bytes(first[0].tolist()).decode().startswith(f'in process 1, {failure}')
    for _, without, with_rehearsal in (first, second):
        torch.testing.assert_close(with_rehearsal, without, rtol=0, atol=0)
    assert losses(tmp_path / 'workTrue') == losses(tmp_path / 'workFalse')


def test_a_warning_that_the_rehearsal_hid_comes_in_the_run(tmp_path):
    run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=1, custom_hooks=[dict(type='RehearsedNormHook')]))
    (log,) = tmp_path.glob('work/*/*.log')
    assert log.read_text().count('norm of BasicBlock has a hook: modules of this kind run plain') == 1


def test_the_copy_of_a_compiled_model_is_not_compiled():
    model = RehearsedModel()
    model.forward = torch.compile(model.forward, backend='eager')
    assert 'forward' in vars(model) and 'forward' not in vars(copy_model(model))
