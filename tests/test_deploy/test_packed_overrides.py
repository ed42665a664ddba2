"""Packing honours what subclasses and instances override: a twin computes the same, or the layer stays as it is."""

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmgroupnet.deploy import pack, pack_and_report
from mmgroupnet.layers import BinaryConv2d, RealValuedSkip
from mmgroupnet.layers.packed import PackedUnit
from mmgroupnet.quantizers import PolynomialSign, ShiftedSign, SignWeight, TensorScaleWeight
from tests.liveness import estimate_statistics
from tests.test_deploy.test_packing import as_trained, assert_agrees, assert_twins_agree, build_backbone, pictures

pytestmark = pytest.mark.usefixtures('simulated_layers')


class ModuleWithSkip(ConvModule):
    def forward(self, x, *args, **kwargs):
        return super().forward(x, *args, **kwargs) + x


class OffsetSign(PolynomialSign):
    def forward(self, x):
        return super().forward(x - 0.5)


class LearnedOffsetSign(ShiftedSign):
    def forward(self, x):
        return super().forward(x - 0.5)


class LearnedScale(SignWeight):
    """A learned scale per channel, which training may make negative."""

    def __init__(self, num_bases: int, channels: int) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.linspace(-1, 2, num_bases * channels).view(num_bases, channels, 1, 1, 1))

    def scale(self, weight: Tensor) -> Tensor:
        return self.learned


class ClippedWeight(TensorScaleWeight):
    def forward(self, weight, num_bases=1):
        return super().forward(weight.clamp(-1, 1), num_bases)


class TestClassesOfOthers:
    def test_a_conv_module_with_a_forward_of_its_own_keeps_it(self):
        torch.manual_seed(0)
        module = ModuleWithSkip(
            12, 12, 3, padding=1, conv_cfg=dict(type='mmgroupnet.BinaryConv2d'), norm_cfg=dict(type='BN'), act_cfg=None
        ).eval()
        x = torch.randn(2, 12, 11, 14)
        packed = pack(module)
        assert isinstance(packed, ModuleWithSkip) and isinstance(packed.conv, PackedUnit)
        with torch.no_grad():
            assert_agrees('conv', packed(x), module(x))

    def test_a_conv_module_whose_forward_was_replaced_keeps_it(self):
        module = ConvModule(4, 4, 3, conv_cfg=dict(type='mmgroupnet.BinaryConv2d'), act_cfg=None).eval()
        module.forward = lambda x: 0 * x
        packed = pack(module)
        assert isinstance(packed, ConvModule) and packed(torch.ones(1, 4, 5, 5)).abs().max() == 0

    @pytest.mark.parametrize('decomposition', ['lbd', 'soft_gate'])
    def test_a_negative_scale_stays_in_front_of_the_relu(self, decomposition):
        backbone = build_backbone(num_bases=2, base_channels=8, decomposition=decomposition)
        for module in backbone.modules():
            if isinstance(module, BinaryConv2d):
                module.weight_quantizer = LearnedScale(module.num_bases, module.out_channels)
        estimate_statistics(backbone, lambda: backbone(pictures()))
        assert_twins_agree(as_trained(backbone), lambda model: model(pictures()))

    def test_a_weight_quantizer_with_a_forward_of_its_own_is_honoured(self):
        conv = BinaryConv2d(6, 4, 3).eval()
        conv.weight_quantizer = ClippedWeight()
        nn.init.normal_(conv.weight, std=2)
        x = torch.randn(2, 6, 7, 8)
        packed, (layer,) = pack_and_report(conv)
        assert layer.problem is None
        with torch.no_grad():
            assert_agrees('conv', packed(x), conv(x))

    @pytest.mark.parametrize('sign', [OffsetSign(), type('Heir', (OffsetSign,), {})(), LearnedOffsetSign(6)])
    def test_a_sign_with_a_forward_of_its_own_is_left(self, sign):
        conv = BinaryConv2d(6, 4, 3)
        conv.activation = sign
        _, (layer,) = pack_and_report(conv)
        assert layer.problem == f'{type(sign).__name__} has a forward of its own'


class HalfSkip(RealValuedSkip):
    def forward(self, x):
        return self.module(x) + 0.5 * x


def test_a_skip_with_a_forward_of_its_own_keeps_it():
    torch.manual_seed(0)
    skip, x = HalfSkip(BinaryConv2d(6, 6, 3, padding=1)).eval(), torch.randn(2, 6, 7, 8)
    packed = pack(skip)
    assert isinstance(packed, HalfSkip) and isinstance(packed.module, PackedUnit)
    with torch.no_grad():
        assert_agrees('skip', packed(x), skip(x))


class ReturnsNothing(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)


def test_a_model_whose_train_returns_nothing():
    packed = pack(ReturnsNothing(BinaryConv2d(4, 4, 1)))
    assert isinstance(packed, ReturnsNothing) and isinstance(packed[0], PackedUnit) and not packed.training


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class NoisyWeight(TensorScaleWeight):
    """Adds noise in training, like some estimators."""

    def forward(self, weight, num_bases=1):
        noise = torch.randn_like(weight) if self.training else 0
        return super().forward(weight + noise, num_bases)


class ShiftedConv(BinaryConv2d):
    def forward(self, x):
        return super().forward(x) + 1


class TestWhatIsRewritten:
    """A packed twin computes the same as the layer; a layer without such a twin stays as it is."""

    def check(self, backbone: nn.Module) -> list:
        x = pictures()
        estimate_statistics(backbone, lambda: backbone(x))
        trained = as_trained(backbone)
        packed, layers = pack_and_report(trained.train())
        trained.eval()
        with torch.no_grad():
            for out, wanted in zip(packed(x), trained(x), strict=True):
                assert_agrees('map', out, wanted)
        return [layer.problem for layer in layers if layer.problem is not None]

    def test_a_quantizer_that_is_noisy_in_training(self):
        backbone = build_backbone(num_bases=2, base_channels=8)
        for module in backbone.modules():
            if isinstance(module, BinaryConv2d):
                module.weight_quantizer = NoisyWeight()
        assert self.check(backbone) == []

    def test_an_activation_in_the_place_of_a_relu(self):
        backbone = build_backbone(num_bases=2, base_channels=8)
        backbone.stages[0][0].units[0].relu = nn.PReLU(init=0.5)
        assert self.check(backbone) == []

    def test_a_norm_and_a_conv_of_their_own_classes(self):
        backbone = build_backbone(num_bases=2, base_channels=8)
        backbone.stages[0][0].units[0].norm.__class__ = ShiftedNorm
        backbone.stages[1][0].units[0].conv.__class__ = ShiftedConv
        assert self.check(backbone) == ['ShiftedConv has a forward of its own']

    def test_a_part_with_a_hook(self):
        backbone = build_backbone(num_bases=2, base_channels=8)
        conv = backbone.stages[1][0].units[1].conv
        conv.register_forward_hook(lambda module, inputs, out: out + 1)
        assert self.check(backbone) == ['BinaryConv2d has hooks, which its packed twin would not call']
