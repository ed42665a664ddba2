"""What a config gets before its Runner is built: guards against lost work, and stacked batches."""

import pytest
from mmengine.config import Config

from mmgroupnet.engine.launch import add_guards, stack_batches


class TestGuards:
    guards = ('CheckpointMatchHook', 'InvalidLossHook', 'LabelRangeHook', 'EpochSeedHook', 'PlainCheckpointHook')
    names = [f'mmgroupnet.{guard}' for guard in guards]

    def test_they_are_added_once(self):
        cfg = Config(dict(custom_hooks=[dict(type='Other'), dict(type='mmgroupnet.InvalidLossHook', priority='LOW')]))
        for _ in range(2):
            add_guards(cfg)
            assert sorted(hook.type for hook in cfg.custom_hooks) == sorted(['Other', *self.names])
        assert cfg.custom_hooks[1].priority == 'LOW'

    def test_checkpoints_are_written_whole(self):
        cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2))))
        add_guards(cfg)
        assert cfg.default_hooks.checkpoint.to_dict() == dict(
            type='CheckpointHook', interval=2, backend_args=dict(backend='mmgroupnet.atomic')
        )
        cfg = Config()
        add_guards(cfg)
        assert cfg.default_hooks.checkpoint.backend_args.backend == 'mmgroupnet.atomic'

    @pytest.mark.parametrize(
        'options',
        [
            dict(out_dir='s3://bucket/run'),
            dict(backend_args=dict(backend='petrel')),
            dict(file_client_args=dict(backend='petrel')),
        ],
    )
    def test_checkpoints_for_elsewhere_go_where_the_config_says(self, options):
        cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **options))))
        add_guards(cfg)
        assert cfg.default_hooks.checkpoint.to_dict() == dict(type='CheckpointHook', **options)

    @pytest.mark.parametrize('seed', [None, 0])
    def test_workers_start_anew_where_a_seed_is_given(self, seed):
        cfg = Config(dict(train_dataloader=dict(persistent_workers=True), randomness=dict(seed=seed)))
        add_guards(cfg)
        assert cfg.train_dataloader.persistent_workers == (seed is None)


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
