import copy
import pickle

import pytest
import torch
from mmdet.models.detectors import FCOS
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet.engine.launch import build_runner
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from tests.tiny_run import load_tiny_run

POLICY = [
    dict(become='keep', names='backbone.conv1'),
    dict(become='keep', names='bbox_head.conv_*'),
    dict(become='groupwise', types='BasicBlock', num_bases=2),
    dict(become='layerwise', num_bases=2, input_norm=dict(type='GN', num_groups=4)),
]
BACKBONE = dict(
    type='mmdet.ResNet', depth=18, base_channels=8, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
    out_indices=(1, 2),
)  # fmt: skip


def tiny_config(folder, **overrides) -> Config:
    """The tiny run with a binarised model of stock parts."""
    cfg = load_tiny_run(folder, **overrides)
    inner = cfg.model.to_dict()
    inner['backbone'] = BACKBONE
    inner['neck'] = dict(type='FPN', in_channels=[16, 32], out_channels=8, num_outs=2)
    cfg.model = dict(type='mmgroupnet.Binarized', policy=POLICY, model=inner)
    return cfg


@pytest.fixture
def cfg(tmp_path):
    return tiny_config(tmp_path)


def build(model_cfg):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(copy.deepcopy(model_cfg))


def test_is_the_stock_model(cfg):
    model = build(cfg.model)
    assert isinstance(model, FCOS) and type(model).__name__ == 'BinarizedFCOS'
    assert type(model).__module__ == FCOS.__module__
    assert any(isinstance(module, BinaryConv2d) for module in model.backbone.modules())
    float_names = set(build(cfg.model.model).state_dict())
    kept = {name for name in float_names if 'layer' not in name}
    assert kept <= set(model.state_dict())


def test_the_data_preprocessor_reaches_the_model(cfg):
    inner = cfg.model.model
    preprocessor = inner.pop('data_preprocessor')
    model = build(dict(cfg.model, data_preprocessor=preprocessor))
    assert model.data_preprocessor.pad_size_divisor == 32


def test_the_optimizer_has_the_parameters_of_before_initialisation(cfg):
    model = build(cfg.model)
    before = list(model.parameters())
    with DefaultScope.overwrite_default_scope('mmdet'):
        model.init_weights()
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_initialisation_is_the_float_models_own(cfg, tmp_path):
    """Pretrained weights initialise the bases, the kept layers and the norms."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        source = MODELS.build(BACKBONE)
        for parameter in source.parameters():
            torch.nn.init.normal_(parameter)
        torch.save(dict(state_dict=source.state_dict()), tmp_path / 'float.pth')
        inner = cfg.model.model
        inner.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'float.pth'))
        model = MODELS.build(cfg.model)
        model.init_weights()
    backbone = model.backbone
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)
    for position, block in enumerate(backbone.layer2[0].blocks):
        assert torch.equal(block.branches[0].conv1.weight, source.layer2[position].conv1.weight)
        for branch in block.branches:
            assert torch.equal(branch.bn1.weight, source.layer2[position].bn1.weight)
    # Only the float model's own initialisation sets the bias of mmdet's heads to -log(99).
    assert model.bbox_head.conv_cls.bias.mean().item() == pytest.approx(-4.595, abs=1e-3)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_initialises_itself(cfg, duplicate):
    """EMAHook copies the model, and spawned processes pickle it."""
    model = build(cfg.model)
    twin = duplicate(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with DefaultScope.overwrite_default_scope('mmdet'):
        twin.init_weights()
    assert type(twin) is type(model) and twin.binarized_from == model.binarized_from
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(twin.backbone.conv1.weight, model.backbone.conv1.weight)


def test_ema_checkpoints_and_resume(tmp_path):
    """As for a stock model, the losses after a resume are those of an uninterrupted run."""
    hooks = [dict(type='EMAHook', momentum=0.1)]

    def losses(work_dir, epochs, **options):
        cfg = tiny_config(tmp_path, work_dir=str(work_dir), train_cfg__max_epochs=epochs, custom_hooks=hooks)
        run_training(cfg, **options)
        from tests.test_engine.test_training import losses as logged

        return logged(work_dir)

    whole = losses(tmp_path / 'whole', 2)
    losses(tmp_path / 'parts', 1)
    assert losses(tmp_path / 'parts', 2, resume='auto') == {step: whole[step] for step in (5, 6, 7, 8)}
    saved = torch.load(tmp_path / 'whole/epoch_2.pth', weights_only=True)
    assert 'ema_state_dict' in saved


def test_a_policy_that_does_not_fit_is_one_line(tmp_path):
    cfg = tiny_config(tmp_path)
    cfg.model.policy.insert(0, dict(become='keep', names='backbone.steam'))
    with pytest.raises(UserError, match=r"names=\['backbone.steam'\]\) selects no layer of FCOS"):
        build_runner(cfg)


def test_layer_wise_learning_rates_follow_the_blocks():
    backbone = dict(type='mmpretrain.ResNet', depth=50, base_channels=4, stem_channels=4)
    inner = dict(type='mmpretrain.ImageClassifier', backbone=backbone)
    policy = [
        dict(become='keep', names='backbone.conv1'),
        dict(become='groupwise', types='Bottleneck', num_bases=2, skip=True),
    ]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(inner)
        model = MODELS.build(dict(type='mmgroupnet.Binarized', policy=policy, model=inner))
    found = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    for stage, block in [(2, 0), (2, 3), (3, 5)]:
        expected = stock.get_layer_depth(f'backbone.layer{stage}.{block}.conv1.weight')
        chain = f'backbone.layer{stage}.0.blocks.{block}.'
        depths = {depth for name, depth in found.items() if name.startswith(chain)}
        assert depths == {expected} and f'{chain}branches.1.conv1.weight' in found
        assert (f'{chain}gate.theta' in found) == (block > 0)
    assert found['backbone.conv1.weight'] == stock.get_layer_depth('backbone.conv1.weight')


def test_a_model_has_layer_depths_only_if_its_stock_class_has(cfg):
    """mmpretrain refuses layer-wise learning rates for models without the method."""
    assert not hasattr(FCOS, 'get_layer_depth') and not hasattr(build(cfg.model), 'get_layer_depth')
