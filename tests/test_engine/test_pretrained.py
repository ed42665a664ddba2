from http.client import IncompleteRead
from urllib.error import URLError

import pytest
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.errors import UserError
from mmgroupnet.engine.pretrained import fetch_pretrained, find_pretrained, leave_out_pretrained


def config() -> Config:
    pretrained = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    return Config(
        dict(
            model=dict(
                type='Some',
                pretrained='open-mmlab://resnet50_v1c',
                backbone=dict(init_cfg=pretrained),
                heads=[dict(init_cfg=[dict(type='Normal', std=0.01), dict(pretrained, checkpoint='local.pth')])],
                neck=dict(init_cfg=dict(type='Xavier', layer='Conv2d')),
            )
        )
    )


def test_every_way_to_name_weights():
    found = [(path, checkpoint) for _, _, path, checkpoint in find_pretrained(config().model)]
    assert found == [
        ('model.pretrained', 'open-mmlab://resnet50_v1c'),
        ('model.backbone.init_cfg', 'torchvision://resnet18'),
        ('model.heads.0.init_cfg', 'local.pth'),
    ]


def test_leaving_them_out():
    cfg = config()
    leave_out_pretrained(cfg)
    assert list(find_pretrained(cfg.model)) == []
    assert cfg.model.neck.init_cfg.type == 'Xavier'


@pytest.mark.parametrize('error', [URLError('Name or service not known'), IncompleteRead(b''), ConnectionError()])
def test_no_network_is_one_line_with_the_option(monkeypatch, error):
    def load_checkpoint(*args, **kwargs):
        raise error

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', load_checkpoint)
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    with pytest.raises(UserError) as caught:
        fetch_pretrained(cfg)
    message = str(caught.value)
    assert message.startswith('model.backbone.init_cfg: torchvision://resnet18 cannot be fetched (')
    assert message.endswith('--cfg-options model.backbone.init_cfg=None')
    assert '\n' not in message


def test_weights_of_the_disk_are_not_fetched(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', lambda *args, **kwargs: pytest.fail('fetched'))
    fetch_pretrained(Config(dict(model=dict(init_cfg=dict(type='Pretrained', checkpoint='local.pth')))))
