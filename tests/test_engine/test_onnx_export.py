"""Exporting checkpoints to .onnx files: the exported model, its names, its resize rule, and errors."""

import pytest
import torch
from mmdet.models import FCOS
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.deploy.onnx import Exported
from mmgroupnet.deploy.onnx.check import Comparison
from mmgroupnet.engine import onnx_export
from mmgroupnet.engine.onnx_export import export_checkpoint
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.layers.packed import PackedModule
from tests.tiny_run import load_tiny_run

META = dict(classes=('red', 'blue'), palette=[(220, 20, 60), (0, 0, 230)])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The tiny detector's config, with a float and a packed checkpoint."""
    folder = tmp_path_factory.mktemp('onnx_export')
    cfg = load_tiny_run(folder)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(meta=dict(dataset_meta=META), state_dict=model.state_dict()), folder / 'float.pth')
    pack_checkpoint(cfg, folder / 'float.pth', folder / 'packed.pth')
    return folder


@pytest.fixture
def cfg(folder) -> Config:
    return load_tiny_run(folder)


@pytest.fixture
def given(monkeypatch):
    """The arguments of ``export``, replaced by a function that writes four bytes, since tracing takes seconds."""
    given = {}

    def fake(model, path, raw, scores, classes, palette, resize):
        given.update(model=model, raw=raw, scores=scores, classes=classes, palette=palette, resize=resize)
        path.write_bytes(b'onnx')
        return Exported(dict(task='detection'), 7, Comparison(problem='none here'))

    monkeypatch.setattr(onnx_export, 'export', fake)
    return given


@pytest.mark.parametrize('checkpoint', ['float.pth', 'packed.pth'])
def test_a_packed_model_is_written(folder, cfg, given, tmp_path, checkpoint):
    summary = export_checkpoint(cfg, folder / checkpoint, tmp_path / 'a.onnx', strict=True)
    assert summary.splitlines() == [
        f'{tmp_path}/a.onnx: detection, 4 bytes, 7 binary layers on bits',
        'not compared with the model: none here',
    ]
    assert any(isinstance(module, PackedModule) for module in given['model'].modules())
    assert not any(isinstance(module, BinaryConv2d) for module in given['model'].modules())
    assert list(given['classes']) == ['red', 'blue'] and [tuple(each) for each in given['palette']] == META['palette']
    assert given['resize'] == [dict(type='resize', width=64, height=48, keep_ratio=True)]
    assert (given['raw'], given['scores']) == (False, False)


def test_the_library_of_a_config_without_a_scope_is_that_of_its_model(folder, cfg, given, tmp_path):
    cfg.model.type = FCOS
    cfg.default_scope = None
    export_checkpoint(cfg, folder / 'float.pth', tmp_path / 'a.onnx', strict=True)
    assert given['resize'] == [dict(type='resize', width=64, height=48, keep_ratio=True)]


def test_the_weights_are_those_of_the_checkpoint(folder, cfg, given, tmp_path):
    states = []
    for checkpoint in ('float.pth', 'packed.pth'):
        export_checkpoint(cfg, folder / checkpoint, tmp_path / 'a.onnx', raw=True)
        states.append(given['model'].state_dict())
    assert given['raw'] is True
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_a_float_model_is_written_as_it_is(tmp_path, cfg, given):
    cfg.model = dict(
        type='FCOS',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(
            type='ResNet', depth=18, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)
        ),
        neck=dict(type='FPN', in_channels=[4, 8], out_channels=8, num_outs=2),
        bbox_head=dict(
            type='FCOSHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            strides=(4, 8),
            norm_cfg=dict(type='BN'),
            regress_ranges=((-1, 24), (24, 1e8)),
        ),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')
    export_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'a.onnx', strict=True)
    assert given['model'].state_dict().keys() == model.state_dict().keys()
    assert given['classes'] is given['palette'] is None


def test_a_pipeline_that_no_rule_says_is_a_note(folder, cfg, given, tmp_path):
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Pad', size_divisor=32))
    summary = export_checkpoint(cfg, folder / 'packed.pth', tmp_path / 'a.onnx')
    assert given['resize'] is None
    assert summary.splitlines()[-1].startswith(
        "the file has no resize rule, its user has to prepare pictures: the test pipeline has {'type': 'Pad', "
    )


def test_crops_are_for_classifiers_and_maps(folder, cfg, given, tmp_path):
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='CenterCrop', crop_size=32))
    assert "has {'type': 'CenterCrop'" in export_checkpoint(cfg, folder / 'packed.pth', tmp_path / 'a.onnx')
    assert given['resize'] is None
    export_checkpoint(cfg, folder / 'packed.pth', tmp_path / 'a.onnx', raw=True)
    assert given['resize'][0] == dict(type='center_crop', width=32, height=32)


def test_a_config_without_a_test_is_a_note(folder, cfg, given, tmp_path):
    cfg.test_dataloader = None
    summary = export_checkpoint(cfg, folder / 'packed.pth', tmp_path / 'a.onnx')
    assert given['resize'] is None
    assert summary.splitlines()[-1] == 'the file has no resize rule: the config has no test pipeline'


def test_palettes_without_a_colour_for_each_class_are_none(tmp_path, folder, cfg, given):
    content = torch.load(folder / 'float.pth', weights_only=True)
    for palette in ('random', [(1, 2, 3)]):
        content['meta']['dataset_meta'] = dict(classes=('red', 'blue'), palette=palette)
        torch.save(content, tmp_path / 'float.pth')
        export_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'a.onnx')
        assert given['palette'] is None and list(given['classes']) == ['red', 'blue']


def refused(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        export_checkpoint(*args, **options)
    return str(caught.value)


def test_names_by_which_no_tool_knows_the_file(folder, cfg, tmp_path):
    assert refused(cfg, folder / 'packed.pth', tmp_path / 'a.pth') == (
        f'--out {tmp_path}/a.pth: give a name that ends in .onnx, by which other tools know the file'
    )


def test_checkpoints_of_another_architecture(folder, cfg, tmp_path):
    cfg.model.bbox_head.num_classes = 5
    message = refused(cfg, folder / 'float.pth', tmp_path / 'a.onnx')
    assert message.startswith(f'checkpoint {folder}/float.pth is of another architecture than the config')


def test_layers_that_cannot_be_packed(folder, cfg, given, tmp_path):
    cfg.model.backbone.real_valued = True
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')
    summary = export_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'a.onnx')
    floating = [line for line in summary.splitlines() if line.startswith('stays float: backbone.')]
    assert floating and 'RealWeight has no signs: its weights are real-valued' in floating[0]
    message = refused(cfg, tmp_path / 'float.pth', tmp_path / 'b.onnx', strict=True)
    assert message.startswith('--strict: ') and 'binary layers stay float' in message


def test_answers_that_are_not_covered(folder, cfg, tmp_path):
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    assert refused(cfg, folder / 'packed.pth', tmp_path / 'a.onnx').startswith('test_cfg.nms=')
    assert refused(cfg, folder / 'packed.pth', tmp_path / 'a.onnx', scores=True) == (
        'scores=True (--scores) is for class maps, not for detection'
    )


def test_folders_that_cannot_be_written(folder, cfg, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(onnx_export, 'export', full)
    assert refused(cfg, folder / 'packed.pth', tmp_path / 'a.onnx') == (
        f'{tmp_path}/a.onnx cannot be written: No space left on device'
    )
