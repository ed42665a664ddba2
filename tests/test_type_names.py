import pytest
import torch
from mmengine.config import Config

from mmgroupnet.engine.configs import load_config
from mmgroupnet.type_names import name_types

TEXT = """
from mmcv.transforms import LoadImageFromFile
from mmdet.models import FCOS, ResNet
from mmgroupnet.models.backbones import GroupNetResNet
from mmpretrain.models import MobileNetV2
from torch.nn import BatchNorm2d
from torch.optim import Adam
from torch.utils.data import Dataset

default_scope = 'mmdet'
model = dict(
    type=FCOS, backbone=dict(type=GroupNetResNet, norm_cfg=dict(type=BatchNorm2d)), neck=dict(type=MobileNetV2),
    bbox_head=dict(type='FCOSHead'), mask_head=dict(type='mmseg.FCNHead'))
optimizer = dict(type=Adam)
pipeline = [dict(type=LoadImageFromFile, backend_args=None), (dict(type=ResNet),)]
others = [dict(type=Dataset), dict(type='a.b.c'), dict(type='..'), dict(type=3)]
"""


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / 'pure.py').write_text(TEXT)
    return Config.fromfile(tmp_path / 'pure.py')


def check(cfg):
    model = cfg.model
    assert model.type == 'FCOS'
    assert model.backbone.type == 'mmgroupnet.GroupNetResNet'
    assert model.backbone.norm_cfg.type == 'BN'
    # mmdet has a MobileNetV2 as well, so the name needs the scope.
    assert model.neck.type == 'mmpretrain.MobileNetV2'
    assert model.bbox_head.type == 'FCOSHead' and model.mask_head.type == 'mmseg.FCNHead'
    assert cfg.optimizer.type == 'Adam'
    assert cfg.pipeline[0].type == 'LoadImageFromFile' and cfg.pipeline[1][0].type == 'ResNet'
    # This class is not registered.
    assert cfg.others[0].type in (torch.utils.data.Dataset, 'torch.utils.data.Dataset')
    assert [entry['type'] for entry in cfg.others[1:]] == ['a.b.c', '..', 3]


def test_classes(cfg):
    name_types(cfg)
    check(cfg)


def test_what_cannot_be_imported_is_left(tmp_path):
    (tmp_path / 'pure.py').write_text(
        'from torch.optim import SGD\nfrom no_such_library import Part\n'
        'optimizer = dict(type=SGD)\nother = dict(type=Part)\n'
    )
    cfg = load_config(str(tmp_path / 'pure.py'))
    assert cfg.optimizer.type == 'SGD'
    assert "type='no_such_library.Part'" in cfg.pretty_text


def test_dotted_names(cfg, tmp_path):
    """In a dumped config, mmengine writes classes as dotted names."""
    cfg.dump(tmp_path / 'dumped.py')
    assert "'mmcv.transforms.LoadImageFromFile'" in (tmp_path / 'dumped.py').read_text()
    check(load_config(str(tmp_path / 'dumped.py')))


def test_a_class_that_the_scope_hides_keeps_its_module(cfg, monkeypatch):
    from mmdet.registry import MODELS

    monkeypatch.setitem(MODELS.module_dict, 'BN', torch.nn.Identity)
    monkeypatch.setitem(MODELS.module_dict, 'BN2d', torch.nn.Identity)
    name_types(cfg)
    kind = cfg.model.backbone.norm_cfg.type
    assert kind == 'mmengine.BN' and MODELS.get(kind) is torch.nn.BatchNorm2d
