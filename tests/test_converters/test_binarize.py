import copy

import pytest
import torch
from mmcv.cnn import VGG
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn
from torch.testing import assert_close

import mmgroupnet
from mmgroupnet.converters import binarization_of
from mmgroupnet.deploy import pack_and_report
from mmgroupnet.layers import (
    BinaryConv2d,
    BinaryLinear,
    GroupwiseChain,
    LayerwiseBinaryLinear,
    RealValuedSkip,
)
from tests.batteries import assert_finite_gradients, detection_samples
from tests.liveness import assert_alive, binary_layer_calls, estimate_statistics, real_pictures

pytestmark = pytest.mark.usefixtures('simulated_layers')

POLICY = [
    dict(become='keep', names='backbone.conv1'),
    dict(become='keep', names='*.retina_*'),
    dict(become='groupwise', types=['BasicBlock', 'Bottleneck'], num_bases=2),
    dict(become='layerwise', names='neck', num_bases=3),
    dict(become='binary', input_norm=dict(type='GN', num_groups=4)),
]


def retinanet(depth: int = 18, seed: int = 0) -> nn.Module:
    """A thin RetinaNet with frozen layers, as in mmdet's configs."""
    torch.manual_seed(seed)
    channels = [8, 16, 32, 64] if depth == 18 else [32, 64, 128, 256]
    model = MODELS.build(
        dict(
            type='mmdet.RetinaNet',
            backbone=dict(
                type='mmdet.ResNet',
                depth=depth,
                base_channels=8,
                frozen_stages=1,
                norm_eval=True,
                norm_cfg=dict(type='BN', requires_grad=False),
            ),
            neck=dict(type='mmdet.FPN', in_channels=channels, out_channels=8, start_level=1, num_outs=4),
            bbox_head=dict(
                type='mmdet.RetinaHead',
                num_classes=3,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(type='mmdet.AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32, 64]),
            ),
            train_cfg=dict(
                assigner=dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                sampler=dict(type='mmdet.PseudoSampler'),
                allowed_border=-1,
                pos_weight=-1,
            ),
            data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[127] * 3, std=[60] * 3),
        )
    )
    model.init_weights()
    return model


def kinds(model: nn.Module) -> dict[str, str]:
    """Class names of convolutions and linear layers, by layer name."""
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, BinaryConv2d | nn.Conv2d | nn.Linear)
    }


class TestLayers:
    def test_learned_scales_start_at_the_weights(self):
        rule = dict(become='binary', binary_cfg=dict(weight=dict(type='mmgroupnet.LearnedScaleWeight')))
        (conv,) = mmgroupnet.binarize(nn.Sequential(nn.Conv2d(4, 6, 3)), [rule])
        assert_close(conv.weight_quantizer.alpha.detach(), conv.weight.detach().abs().mean((1, 2, 3)))

    @pytest.mark.parametrize(('num_bases', 'error'), [(1, 0.65), (4, 0.35)])
    def test_learned_scales_of_bases_fit_the_weights(self, num_bases, error):
        cfg = dict(weight=dict(type='mmgroupnet.LearnedScaleWeight'))
        rule = dict(become='layerwise', num_bases=num_bases, input_norm=None, binary_cfg=cfg)
        float_conv = nn.Conv2d(64, 64, 3)
        nn.init.normal_(float_conv.weight, std=0.02)
        (conv,) = mmgroupnet.binarize(nn.Sequential(float_conv), [rule])
        assert (conv.effective_weight() - float_conv.weight).norm() < error * float_conv.weight.norm()
        if num_bases == 1:
            assert torch.equal(conv.weight, float_conv.weight)
            assert_close(conv.weight_quantizer.alpha, float_conv.weight.abs().mean((1, 2, 3)))

    def test_a_channel_of_zeros_has_bases_that_differ_and_learn(self):
        rule = dict(become='layerwise', num_bases=2, binary_cfg=dict(weight=dict(type='mmgroupnet.LearnedScaleWeight')))
        float_conv = nn.Conv2d(8, 2, 3)
        nn.init.zeros_(float_conv.weight[0])
        (conv,) = mmgroupnet.binarize(nn.Sequential(float_conv), [rule])
        first, second = conv.weight.unflatten(0, (2, -1))[:, 0]
        assert (first.sign() != second.sign()).all() and conv.weight_quantizer.alpha.min() > 0
        assert_close(conv.effective_weight()[0], torch.zeros(8, 3, 3))

    def test_every_rule_does_what_it_says(self):
        model = retinanet()
        assert mmgroupnet.binarize(model, POLICY) is model
        found = kinds(model)
        assert found['backbone.conv1'] == found['bbox_head.retina_cls'] == 'Conv2d'
        assert found['backbone.layer2.0.blocks.0.branches.1.downsample.0'] == 'BinaryConv2d'
        assert found['neck.lateral_convs.0.conv'] == found['neck.fpn_convs.2.conv'] == 'LayerwiseBinaryConv2d'
        assert found['bbox_head.cls_convs.0.conv'] == 'BinaryConv2d'
        assert model.neck.lateral_convs[0].conv.num_bases == 3
        assert model.bbox_head.cls_convs[0].conv.input_norm.num_groups == 4
        chain = model.backbone.layer3[0]
        assert isinstance(chain, GroupwiseChain) and len(model.backbone.layer3) == 1 and len(chain.blocks) == 2

    def test_a_layer_keeps_its_numbers(self):
        conv = nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(2, 0), dilation=2, groups=2)
        model = mmgroupnet.binarize(nn.Sequential(conv), [dict(become='binary')])
        x = torch.randn(1, 4, 9, 8)
        assert model(x).shape == conv(x).shape
        assert model[0].groups == 2 and model[0].dilation == 2
        assert torch.equal(model[0].weight, conv.weight) and torch.equal(model[0].bias, conv.bias)
        assert model[0].input_norm.num_features == 4

    def test_options_reach_the_layers(self):
        cfg = dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'), padding_value=0)
        rule = dict(become='binary', binary_cfg=cfg, input_norm=None)
        (conv,) = mmgroupnet.binarize(nn.Sequential(nn.Conv2d(4, 4, 3)), [rule])
        assert type(conv.weight_quantizer).__name__ == 'ChannelScaleWeight'
        assert conv.padding_value == 0 and conv.input_norm is None

    def test_groups_of_a_group_norm_divide_the_channels(self):
        rule = dict(become='binary', input_norm=dict(type='GN', num_groups=32))
        (conv,) = mmgroupnet.binarize(nn.Sequential(nn.Conv2d(258, 4, 1)), [rule])
        assert conv.input_norm.num_groups == 2

    @pytest.mark.parametrize(('channels', 'groups'), [(256, 32), (64, 8), (48, 4), (12, 1), (7, 1)])
    def test_groups_of_a_group_norm_leave_a_vector_its_values(self, channels, groups):
        rule = dict(become='binary', types='Linear', input_norm=dict(type='GN', num_groups=32))
        (linear,) = mmgroupnet.binarize(nn.Sequential(nn.Linear(channels, 4)), [rule])
        assert linear.input_norm.num_groups == groups

    @pytest.mark.parametrize(
        ('conv', 'has_skip'),
        [
            (nn.Conv2d(4, 4, 3, padding=1), True),
            (nn.Conv2d(4, 4, (5, 1), padding='same'), True),
            (nn.Conv2d(4, 4, 3, padding=2, dilation=2), True),
            (nn.Conv2d(4, 4, 1), True),
            (nn.Conv2d(4, 8, 1), False),
            (nn.Conv2d(4, 4, 1, stride=2), False),
            (nn.Conv2d(4, 4, 3), False),
        ],
    )
    def test_skips_go_around_convs_that_keep_the_shape(self, conv, has_skip):
        rule = dict(become='layerwise', num_bases=2)
        without = mmgroupnet.binarize(nn.Sequential(copy.deepcopy(conv)), [rule])
        model = mmgroupnet.binarize(nn.Sequential(conv), [dict(rule, skip=True)])
        assert isinstance(model[0], RealValuedSkip) is has_skip
        x = torch.randn(2, 4, 7, 6)
        assert torch.equal(model(x), without(x) + x if has_skip else without(x))
        report = binarization_of(model)
        assert report.dropped_tensors == []
        assert {name.split('.')[-2] for name in report.new_tensors} == {'input_norm'}

    @pytest.mark.parametrize(('features', 'has_skip'), [(4, True), (3, False)])
    def test_skips_go_around_linears_that_keep_the_shape(self, features, has_skip):
        rule = dict(become='binary', types='Linear', skip=True)
        (layer,) = mmgroupnet.binarize(nn.Sequential(nn.Linear(4, features)), [rule])
        assert isinstance(layer, RealValuedSkip) is has_skip
        x = torch.randn(5, 4)
        if has_skip:
            assert torch.equal(layer(x), layer.module(x) + x)

    @pytest.mark.parametrize('rule', [dict(become='binary'), dict(become='layerwise', num_bases=2)])
    def test_linears(self, rule):
        model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(3, 3, 1))
        mmgroupnet.binarize(model, [dict(rule, types='Linear')])
        assert type(model[0]) is (BinaryLinear if rule['become'] == 'binary' else LayerwiseBinaryLinear)
        assert type(model[1]) is nn.Conv2d
        assert model[0](torch.randn(5, 4)).shape == (5, 3)

    def test_a_shared_layer_stays_shared(self):
        model = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.ReLU()])
        model.append(model[0])
        mmgroupnet.binarize(model, [dict(become='binary')])
        assert type(model[0]) is BinaryConv2d and model[2] is model[0]

    def test_siblings_of_a_chain_keep_their_names(self):
        model = nn.Sequential(nn.Conv2d(8, 8, 1), *ResNet(18, base_channels=8).layer1, nn.Conv2d(8, 8, 1))
        mmgroupnet.binarize(model, [dict(become='groupwise', types='BasicBlock', num_bases=2)])
        assert list(model._modules) == ['0', '1', '3']
        assert model(torch.randn(1, 8, 8, 8)).shape == (1, 8, 8, 8)


class TestNothingIsLost:
    @pytest.mark.parametrize('depth', [18, 50])
    def test_groups_of_one_branch_and_kept_convs_are_the_stock_model(self, depth):
        """Without signs and tanh the transformed model computes the stock model's operations in the same order."""
        stock = retinanet(depth)
        for module in stock.modules():
            if isinstance(module, nn.BatchNorm2d):  # Random values, so that exchanged norms change the output.
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
        twin = copy.deepcopy(stock)
        policy = [
            dict(become='keep', types='Conv2d'),
            dict(become='groupwise', types=['BasicBlock', 'Bottleneck'], num_bases=1, gates=False),
        ]
        mmgroupnet.binarize(twin, policy)
        assert sum(isinstance(module, GroupwiseChain) for module in twin.modules()) == 4
        x = torch.randn(2, 3, 64, 96)
        for is_training in (False, True):
            for model in (stock, twin):
                model.backbone.norm_eval = False
                model.train(is_training)
            for out, expected in zip(sum(twin(x), []), sum(stock(x), []), strict=True):
                assert torch.equal(out, expected)

    def test_report_of_tensors(self):
        model = retinanet()
        before = set(model.state_dict())
        report = binarization_of(mmgroupnet.binarize(model, POLICY))
        assert report.dropped_tensors == []
        assert {name.rpartition('.')[0].rpartition('.')[2] for name in report.new_tensors} == {'input_norm', 'gate'}
        assert {'backbone.conv1.weight', 'neck.lateral_convs.0.conv.bias', 'bbox_head.retina_cls.bias'} <= before
        assert before & set(model.state_dict()) >= {'backbone.conv1.weight', 'neck.lateral_convs.0.conv.bias'}

    def test_report_of_rules(self):
        text = binarization_of(mmgroupnet.binarize(retinanet(), POLICY)).describe()
        lines = text.splitlines()
        assert lines[0] == 'policy[0] keep: 1 layers (backbone.conv1)'
        assert lines[2].startswith('policy[2] groupwise K=2: 8 blocks with 19 layers (8 x backbone.layer*.*)')
        assert lines[3].startswith('policy[3] layerwise K=3: 6 layers (3 x neck.lateral_convs.*.conv, 3')
        assert 'backbone.norm_eval: True becomes False, since its binary layers train' in lines
        assert 'backbone.frozen_stages: 1 becomes -1, since its binary layers train' in lines

    def test_a_report_is_of_one_model_and_no_part_of_it(self):
        model = nn.Sequential(nn.Conv2d(4, 4, 1))
        assert binarization_of(model) is None
        names = set(vars(model))
        mmgroupnet.binarize(model, [dict(become='binary')])
        assert set(vars(model)) == names
        assert binarization_of(model).rules[0].layers == ['0']
        assert binarization_of(copy.deepcopy(model)) is None

    def test_what_has_no_binary_form_is_reported(self):
        model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4))
        report = binarization_of(mmgroupnet.binarize(model, [dict(become='binary')]))
        assert type(model[1]) is nn.Conv2d
        assert report.problems == {'1': 'depthwise'} and report.unmatched == ['2']
        assert 'kept, depthwise: 1 layers (1)' in report.describe()


class TestWeights:
    def test_the_first_branch_has_the_weights_and_the_others_differ(self):
        model = retinanet()
        expected = model.backbone.layer1[0].conv1.weight.clone()
        mmgroupnet.binarize(model, POLICY)
        first, second = (branch.conv1.weight for branch in model.backbone.layer1[0].blocks[0].branches)
        assert torch.equal(first, expected)
        # The noise has the standard deviation of the weights, so the correlation is 1 / sqrt(2).
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()
        assert correlation == pytest.approx(2**-0.5, abs=0.1)

    def test_kept_layers_of_a_branch_are_copies(self):
        model = ResNet(18, base_channels=8)
        mmgroupnet.binarize(
            model,
            [dict(become='keep', names=['conv1', '*.downsample']), dict(POLICY[2])],
        )
        first, second = (branch.downsample[0].weight for branch in model.layer2[0].blocks[0].branches)
        assert torch.equal(first, second) and first is not second

    def test_a_model_without_memory(self):
        """A model on the meta device, as for comparing its names and shapes with those of a checkpoint."""
        with torch.device('meta'):
            model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
            rules = [dict(become='binary', names='0'), dict(become='layerwise', num_bases=3)]
            mmgroupnet.binarize(model, rules)
        assert [tuple(layer.weight.shape) for layer in model] == [(4, 4, 1, 1), (12, 4, 1, 1)]

    def test_dtype_and_mode_are_kept(self):
        model = nn.Sequential(nn.Conv2d(4, 4, 1)).double().eval()
        mmgroupnet.binarize(model, [dict(become='binary')])
        assert model[0].weight.dtype == model[0].input_norm.weight.dtype == torch.float64
        assert not model[0].input_norm.training


class TestTraining:
    @pytest.mark.parametrize(('depth', 'skip'), [(18, False), (18, True), (50, False)])
    def test_a_detector_trains_is_alive_and_runs_packed(self, depth, skip):
        policy = [dict(rule, skip=skip) if rule['become'] in ('layerwise', 'binary') else rule for rule in POLICY]
        model = mmgroupnet.binarize(retinanet(depth), policy)
        assert all(parameter.requires_grad for parameter in model.backbone.parameters())
        images = model.data_preprocessor(dict(inputs=list(real_pictures(96, 160)), data_samples=None))['inputs']
        samples = detection_samples([[[8, 10, 60, 50], [60, 20, 150, 90]]] * 2, (96, 160))
        model.train()
        losses = model.loss(images, samples)
        sum(sum(value) for value in losses.values()).backward()
        assert_finite_gradients(model)

        estimate_statistics(model, lambda: model(images.flip(3)))
        calls = binary_layer_calls(model, lambda: model(images))
        assert_alive(calls)
        packed, layers = pack_and_report(model)
        assert [layer.problem for layer in layers if layer.problem] == []
        assert not any(isinstance(module, BinaryConv2d) for module in packed.modules())
        with torch.no_grad():
            for out, expected in zip(sum(packed(images), []), sum(model(images), []), strict=True):
                assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    def test_lean_gradients_are_those_of_plain_autograd(self):
        """Binary layers inside the blocks of other libraries run lean and get the gradients of plain autograd."""
        policy = [dict(become='keep', names='conv1'), dict(POLICY[2])]
        torch.manual_seed(0)
        lean = mmgroupnet.binarize(ResNet(18, base_channels=8, zero_init_residual=False), policy).double()
        plain = copy.deepcopy(lean)
        for module in plain.modules():
            if isinstance(module, BinaryConv2d):
                module.memory_efficient = False
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        for model in (lean, plain):
            sum(out.square().mean() for out in model(x)).backward()
        for (name, parameter), other in zip(lean.named_parameters(), plain.parameters(), strict=True):
            assert_close(parameter.grad, other.grad, msg=lambda text, name=name: name + text)

    def test_what_no_switch_had_frozen_stays_fixed(self):
        class Network(nn.Sequential):
            frozen_stages, norm_eval = -1, False

        def network(**switches):
            model = Network(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            model.position = nn.Parameter(torch.zeros(4), requires_grad=False)
            model[1].requires_grad_(False)
            vars(model).update(switches)
            return mmgroupnet.binarize(model, [dict(become='binary')])

        model = network()
        assert not model.position.requires_grad and model[1].weight.requires_grad
        assert '2 frozen parameters of the model train' in binarization_of(model).notes
        model = network(frozen_stages=1)
        assert model.position.requires_grad and model[1].weight.requires_grad

    def test_the_norms_in_the_vgg_of_mmcv_train(self):
        """It keeps all batch norms in eval mode by default, those in front of signs, too."""
        model = mmgroupnet.binarize(VGG(11), [dict(become='keep', names='features.0'), dict(become='binary')])
        model.train()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all(norm.training for norm in norms)
        assert 'bn_eval: True becomes False, since its binary layers train' in binarization_of(model).notes

    def test_frozen_by_something_else(self):
        class Frozen(nn.Sequential):
            def train(self, mode: bool = True):
                return super().train(False)

        with pytest.raises(ValueError, match='0 is frozen by a part of the model'):
            mmgroupnet.binarize(Frozen(nn.Conv2d(4, 4, 1)), [dict(become='binary')])

    def test_only_its_norm_is_frozen_by_something_else(self):
        class Frozen(nn.Sequential):
            def train(self, mode: bool = True):
                super().train(mode)
                for module in self.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
                return self

        with pytest.raises(ValueError, match='0 is frozen by a part of the model'):
            mmgroupnet.binarize(Frozen(nn.Conv2d(4, 4, 1)), [dict(become='binary')])


@pytest.mark.parametrize('rule', [dict(become='binary'), dict(become='layerwise', num_bases=2)])
def test_a_conv_without_padding_by_name(rule):
    conv = nn.Conv2d(4, 6, 3, padding='valid')
    (twin,) = mmgroupnet.binarize(nn.Sequential(conv), [rule])
    assert twin.padding == (0, 0) and twin(torch.randn(1, 4, 7, 8)).shape == (1, 6, 5, 6)


def test_groups_have_the_dtype_of_their_blocks():
    model = ResNet(18, base_channels=8).double()
    mmgroupnet.binarize(model, [dict(become='groupwise', types='BasicBlock', num_bases=2)])
    assert {value.dtype for value in model.parameters()} == {torch.float64}
    assert any(name.endswith('theta') for name, _ in model.named_parameters())


class Excited(nn.Module):
    """A residual block with a linear layer, like one with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.conv(x) * self.linear(x.mean((2, 3)))[..., None, None]


def test_linears_inside_of_groups_are_kept():
    model = mmgroupnet.binarize(nn.Sequential(Excited()), [dict(become='groupwise', types='Excited', num_bases=2)])
    for branch in model[0].blocks[0].branches:
        assert type(branch.conv) is BinaryConv2d and type(branch.linear) is nn.Linear
    assert binarization_of(model).unmatched == ['0.linear']
