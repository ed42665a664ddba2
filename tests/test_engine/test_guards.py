"""Guard hooks that are added to a config, set in it, or switched off by it."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook

from mmgroupnet.checkpoints.write import ATOMIC_BACKEND
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.guards import GUARDS, add_guards
from mmgroupnet.engine.hooks import EpochSeedHook

CONFIGS = Path(__file__).parents[2] / 'configs'

WHOLE = dict(backend=ATOMIC_BACKEND)


def guarded(**content: object) -> Config:
    cfg = Config(content)
    add_guards(cfg)
    return cfg


def guards_of(cfg: Config) -> dict[str, str]:
    return {name: hook.type for name, hook in cfg.default_hooks.items() if name in GUARDS}


@pytest.mark.parametrize('hooks', [{}, dict(default_hooks=None), dict(default_hooks=dict(logger=None))], ids=str)
def test_a_config_that_says_nothing_gets_all(hooks):
    cfg = guarded(**hooks)
    assert guards_of(cfg) == GUARDS
    assert cfg.default_hooks.checkpoint.to_dict() == dict(type='CheckpointHook', interval=1, backend_args=WHOLE)
    assert 'logger' not in cfg.default_hooks or cfg.default_hooks.logger is None  # not a guard, so not changed


@pytest.mark.parametrize('left_out', GUARDS)
def test_one_that_is_set_to_none_stays_out(left_out):
    cfg = guarded(default_hooks={left_out: None})
    assert guards_of(cfg) == {name: kind for name, kind in GUARDS.items() if name != left_out}
    assert left_out not in cfg.default_hooks  # mmengine does not allow None here
    again = Config(cfg.to_dict())
    add_guards(again)
    assert again.to_dict() == cfg.to_dict()  # the config dumped into the work directory gives the same hooks


def test_a_config_can_go_without():
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2), invalid_loss=dict(type=GUARDS['invalid_loss']))
    cfg = guarded(add_guards=False, default_hooks=hooks)
    assert cfg.default_hooks.to_dict() == hooks
    assert guarded(add_guards=False).default_hooks == {}


def test_those_among_custom_hooks_are_not_doubled():
    own = [EMAHook(), EpochSeedHook(), dict(type='mmgroupnet.InvalidLossHook', priority='LOW')]
    cfg = guarded(custom_hooks=own)
    assert sorted(guards_of(cfg)) == ['checkpoint_match', 'label_range', 'plain_checkpoint']
    assert len(cfg.custom_hooks) == 3


@pytest.mark.parametrize(
    'name',
    [
        'fcos_groupnet_r50_coco.py',
        'segmentation/fcn-32s_groupnet_r18_camvid-240x180.py',
        'classification/groupnet_r20_k3_distilled_cifar10.py',
    ],
)
def test_our_configs_write_them_out(name):
    """A guard that is removed from configs/_base_ is not added again."""
    cfg = load_config(str(CONFIGS / name))
    of_masks = {} if cfg.default_scope == 'mmseg' else {'label_range'}
    assert guards_of(cfg) == {name: kind for name, kind in GUARDS.items() if name not in of_masks}
    assert cfg.default_hooks.checkpoint.backend_args == WHOLE
    del cfg.default_hooks['invalid_loss'], cfg.default_hooks.checkpoint['backend_args']
    before = cfg.default_hooks.to_dict()
    add_guards(cfg)
    assert cfg.default_hooks.to_dict() == before


class TestCheckpoints:
    @pytest.mark.parametrize(
        'options',
        [
            dict(out_dir='s3://bucket/run'),
            dict(backend_args=dict(backend='petrel')),
            dict(backend_args=None),
            dict(file_client_args=dict(backend='petrel')),
        ],
        ids=str,
    )
    def test_are_written_as_the_config_says(self, options):
        hook = dict(type='CheckpointHook', **options)
        assert guarded(default_hooks=dict(checkpoint=hook)).default_hooks.checkpoint.to_dict() == hook

    def test_hooks_of_others_are_left_alone(self):
        """They may not have the arguments of mmengine's hook."""
        hook = dict(type='some.CheckpointHookOfMine', interval=2)
        assert guarded(default_hooks=dict(checkpoint=hook)).default_hooks.checkpoint.to_dict() == hook

    def test_those_for_elsewhere_are_not_written_to_the_disk(self):
        hook = dict(type='CheckpointHook', out_dir='s3://bucket/run', backend_args=WHOLE)
        cfg = guarded(add_guards=False, default_hooks=dict(checkpoint=hook))
        assert cfg.default_hooks.checkpoint.to_dict() == dict(type='CheckpointHook', out_dir='s3://bucket/run')


@pytest.mark.parametrize(
    ('seed', 'hooks', 'persistent'), [(None, {}, True), (0, {}, False), (0, dict(epoch_seed=None), True)]
)
def test_workers_start_anew_where_every_epoch_is_seeded(seed, hooks, persistent):
    cfg = guarded(
        train_dataloader=dict(persistent_workers=True), randomness=dict(seed=seed), default_hooks=hooks
    )  # fmt: skip
    assert cfg.train_dataloader.persistent_workers is persistent
