"""A detector's backbone starts from a classification checkpoint, or says that it does not."""

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgroupnet.engine import training
from mmgroupnet.engine.errors import UserError
from mmgroupnet.engine.training import apply_backbone_checkpoint

BACKBONE = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8)


def config(checkpoint):
    return Config(dict(default_scope='mmdet', model=dict(backbone=dict(BACKBONE)), backbone_checkpoint=checkpoint))


@pytest.fixture
def classifier(tmp_path):
    """A checkpoint as mmpretrain writes it: backbone and head."""
    backbone = MODELS.build(BACKBONE)
    state_dict = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=dict(state_dict, **{'head.fc.weight': torch.zeros(10, 64)})), path)
    return path, backbone


def test_weights_of_the_classifier_arrive_in_the_backbone(classifier):
    path, trained = classifier
    cfg = config(str(path))
    apply_backbone_checkpoint(cfg)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], value, rtol=0, atol=0)


def test_no_checkpoint_is_said_aloud(monkeypatch):
    warnings = []
    monkeypatch.setattr(training, 'print_log', lambda message, logger, level: warnings.append((level, message)))
    cfg = config(None)
    apply_backbone_checkpoint(cfg)
    ((level, message),) = warnings
    assert level == logging.WARNING
    assert 'from scratch will not reach' in message
    assert 'init_cfg' not in cfg.model.backbone


def test_a_config_without_the_setting_is_left_alone():
    cfg = Config(dict(model=dict(backbone=dict(BACKBONE))))
    apply_backbone_checkpoint(cfg)
    assert cfg.model.backbone == BACKBONE


def test_another_backbone_is_refused(classifier):
    cfg = config(str(classifier[0]))
    cfg.model.backbone.depth = 34
    with pytest.raises(UserError, match=r'another architecture .*88 missing: stages\.0\.2\.'):
        apply_backbone_checkpoint(cfg)
