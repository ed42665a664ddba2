"""Changes of a config before its Runner is built: wrappers for machines without a GPU, mixed precision, and stacked
batches."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper
from torch import distributed

from mmgroupnet.engine import launch
from mmgroupnet.engine.launch import check_mixed_precision, setup_distribution, stack_batches, use_mixed_precision
from mmgroupnet.errors import UserError


class TestWithoutGPUs:
    """The model wrappers of a distributed run; test_distributed.py runs two processes."""

    @pytest.fixture(autouse=True)
    def no_gpu_and_no_processes(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        monkeypatch.setattr(distributed, 'init_process_group', lambda *args, **kwargs: None)

    @staticmethod
    def prepared(**content):
        cfg = Config(dict(launcher='pytorch', **content))
        setup_distribution(cfg)
        return cfg

    def test_one_is_set(self):
        assert self.prepared(find_unused_parameters=True).model_wrapper_cfg == dict(
            type='CPUDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True
        )

    @pytest.mark.parametrize(
        'kind', [{}, dict(type='MMDistributedDataParallel'), dict(type=MMDistributedDataParallel)], ids=str
    )
    def test_options_of_the_user_are_kept(self, kind):
        wrapper = self.prepared(model_wrapper_cfg=dict(static_graph=True, **kind)).model_wrapper_cfg
        assert wrapper == dict(type='CPUDistributedDataParallel', static_graph=True)

    def test_a_class_of_the_user_is_kept(self):
        own = dict(type='MMSeparateDistributedDataParallel', find_unused_parameters=True)
        assert self.prepared(model_wrapper_cfg=own).model_wrapper_cfg == own

    @pytest.mark.parametrize(
        ('strategy', 'expected'),
        [
            (
                None,
                dict(
                    type='DDPStrategy',
                    model_wrapper=dict(type='CPUDistributedDataParallel', broadcast_buffers=False),
                ),
            ),
            (
                dict(type='DDPStrategy', sync_bn='torch', model_wrapper=dict(static_graph=True)),
                dict(
                    type='DDPStrategy',
                    sync_bn='torch',
                    model_wrapper=dict(type='CPUDistributedDataParallel', static_graph=True),
                ),
            ),
            (dict(type='FSDPStrategy'), dict(type='FSDPStrategy')),
        ],
        ids=['none', 'options', 'other'],
    )
    def test_the_flexible_runner_has_it_in_its_strategy(self, strategy, expected):
        cfg = self.prepared(runner_type='FlexibleRunner', strategy=strategy)
        assert cfg.strategy == expected
        assert 'model_wrapper_cfg' not in cfg


class TestMixedPrecision:
    @staticmethod
    def on(device, monkeypatch, **wrapper):
        monkeypatch.setattr(launch, 'get_device', lambda: device)
        cfg = Config(dict(optim_wrapper=wrapper))
        use_mixed_precision(cfg)
        return cfg.optim_wrapper.to_dict()

    @pytest.mark.parametrize('kind', [{}, dict(type='OptimWrapper'), dict(type=AmpOptimWrapper)], ids=str)
    def test_by_device(self, monkeypatch, kind):
        own = dict(optimizer=dict(type='SGD'), clip_grad=dict(max_norm=1))
        for device in ('cuda', 'npu'):
            expected = dict(type='AmpOptimWrapper', loss_scale='dynamic', **own)
            assert self.on(device, monkeypatch, **kind, **own) == expected
        assert self.on('cpu', monkeypatch, **kind, **own) == dict(type='CPUAmpOptimWrapper', **own)

    def test_options_of_the_user_are_kept(self, monkeypatch):
        own = dict(type='AmpOptimWrapper', optimizer={}, loss_scale=512.0, dtype='bfloat16')
        assert self.on('cuda', monkeypatch, **own) == own
        assert self.on('cpu', monkeypatch, **own) == dict(type='CPUAmpOptimWrapper', optimizer={})

    def test_misuse(self, monkeypatch):
        with pytest.raises(UserError, match=r'^--amp changes an OptimWrapper .* of another kind \(ApexOptimWrapper\)'):
            self.on('cuda', monkeypatch, type='ApexOptimWrapper', optimizer={})
        with pytest.raises(UserError, match='^--amp changes an OptimWrapper with one optimizer'):
            self.on('cuda', monkeypatch, constructor='Mine', generator=dict(type='OptimWrapper', optimizer={}))
        with pytest.raises(UserError, match='^--amp: mmengine has mixed precision for cuda, npu, .* not for mps'):
            self.on('mps', monkeypatch, optimizer={})

    def test_a_config_that_asks_for_what_the_device_lacks(self, monkeypatch):
        cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', optimizer={})))
        monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
        check_mixed_precision(cfg)
        monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
        message = "^optim_wrapper.type='AmpOptimWrapper': mmengine has it for cuda, .*, not for cpu. --amp uses bf"
        with pytest.raises(UserError, match=message):
            check_mixed_precision(cfg)
        check_mixed_precision(Config(dict(optim_wrapper=dict(constructor='Mine'))))


class TestStackedBatches:
    def test_mmpretrain_has_them_as_with_its_own_tools(self):
        own = dict(type='pseudo_collate')
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                train_dataloader=dict(batch_size=4),
                val_dataloader=dict(collate_fn=own),
                test_dataloader=None,
            )
        )
        stack_batches(cfg)
        assert cfg.train_dataloader.collate_fn == dict(type='default_collate')
        assert cfg.val_dataloader.collate_fn == own

    def test_images_of_detection_have_many_sizes(self):
        cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(batch_size=4)))
        stack_batches(cfg)
        assert 'collate_fn' not in cfg.train_dataloader
