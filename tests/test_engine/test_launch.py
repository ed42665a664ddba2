"""What a config gets before its Runner is built: guards against lost work, and stacked batches."""

from mmengine.config import Config

from mmgroupnet.engine.launch import stack_batches


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
