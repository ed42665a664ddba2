"""User-defined quantizers. Each of them runs lean if lean training supports it, otherwise plain, or it is refused.
Packing supports it or reports it as a problem."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.deploy import pack, pack_and_report
from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d, can_run_chain
from mmgroupnet.layers.lean import can_run_conv
from mmgroupnet.quantizers import ChannelScaleWeight, PolynomialSign, SignActivation, SignWeight, binary_sign
from mmgroupnet.registry import MODELS
from tests.lean_comparison import assert_lean_is_plain, small_network

pytestmark = pytest.mark.usefixtures('simulated_layers')

SMALL = dict(stage_blocks=(1, 1), strides=(1, 2), dilations=(1, 1))


@MODELS.register_module()
class ChannelWidthSign(SignActivation):
    """Its surrogate gradient reads a buffer with one value per channel."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer('width', torch.linspace(0.5, 1.5, num_channels))

    def surrogate_gradient(self, x: Tensor) -> Tensor:
        width = self.width.to(x.dtype).view(-1, 1, 1)
        return (x.abs() < width) / width


@MODELS.register_module()
class ThresholdSign(SignActivation):
    """Learns the logarithm of a threshold for each channel."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.log_threshold = nn.Parameter(torch.linspace(-3, 0, num_channels))

    def surrogate_gradient(self, x: Tensor) -> Tensor:
        return (-x.square()).exp()

    def shift_of_channels(self) -> Tensor:
        return -self.log_threshold.exp()


@MODELS.register_module()
class CentredSign(PolynomialSign):
    """Has its own forward, which subtracts the mean of every map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((2, 3), keepdim=True))


@MODELS.register_module()
class LearnedWidthSign(SignActivation):
    """Has a parameter that only the surrogate gradient reads."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))

    def surrogate_gradient(self, x: Tensor) -> Tensor:
        return (x.abs() < self.width).to(x.dtype)


@MODELS.register_module()
class LearnedWidthShiftedSign(LearnedWidthSign):
    """Has such a parameter and another one that gets a gradient."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_channels))

    def shift_of_channels(self) -> Tensor:
        return self.shift


@MODELS.register_module()
class NoGradientSign(SignActivation):
    """Defines no surrogate gradient."""


@MODELS.register_module()
class NoScaleWeight(SignWeight):
    """Defines no scale."""


@MODELS.register_module()
class ClippedWeight(ChannelScaleWeight):
    """Its own forward clips latent weights, so weights outside the limits get no gradient."""

    def forward(self, weight: Tensor, num_bases: int = 1) -> Tensor:
        return super().forward(weight.clamp(-0.2, 0.2), num_bases)


@MODELS.register_module()
class ThresholdedWeight(ChannelScaleWeight):
    """Computes signs in its own way."""

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        return super().signs(weight - 0.1, num_bases)


@MODELS.register_module()
class TernaryWeight(ChannelScaleWeight):
    """Its own signs are wrong, since some of them are zero."""

    def signs(self, weight: Tensor, num_bases: int = 1) -> tuple[Tensor, Tensor]:
        signs, scale = super().signs(weight, num_bases)
        return signs * (weight.abs() > 0.1), scale


@MODELS.register_module()
class TwoMagnitudes(nn.Module):
    """An ordinary module, not one of our classes; weights of the last input channel are twice as large."""

    def forward(self, weight: Tensor, num_bases: int) -> Tensor:
        factor = torch.ones(weight.shape[1], dtype=weight.dtype)
        factor[-1] = 2
        return (binary_sign(weight.detach()) + weight - weight.detach()) * factor.view(-1, 1, 1)


@MODELS.register_module()
class OneMagnitude(nn.Module):
    """An ordinary module, not one of our classes; all its weights have the same magnitude."""

    def forward(self, weight: Tensor, num_bases: int) -> Tensor:
        return (binary_sign(weight.detach()) + weight - weight.detach()) * 0.5


@MODELS.register_module()
class SoftClippedWeight(ChannelScaleWeight):
    """Overrides all methods that lean training supports; the surrogate gradient is not an even function."""

    def latent(self, weight: Tensor) -> Tensor:
        return weight.tanh() + 0.01

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return torch.where(latent > 0, 1 - latent.square(), 0.5)


@MODELS.register_module()
class LearnedSoftClippedWeight(SoftClippedWeight):
    """Has learned scales, some of them negative, and a learned shift of the weights as well."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(-1.5, 2, num_channels))
        self.shift = nn.Parameter(torch.tensor(0.02))

    def latent(self, weight: Tensor) -> Tensor:
        return super().latent(weight) - self.shift

    def scale(self, latent: Tensor) -> Tensor:
        return self.factor.view(*latent.shape[:2], 1, 1, 1)


@MODELS.register_module()
class LearnedWidthWeight(ChannelScaleWeight):
    """Has a parameter that only the surrogate gradient reads."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))

    def surrogate_gradient(self, latent: Tensor) -> Tensor:
        return (latent.abs() < self.width).to(latent.dtype)


@MODELS.register_module()
class MeanWeight(SignWeight):
    """Its scale is wrong, since the absolute value is missing."""

    def scale(self, latent: Tensor) -> Tensor:
        return latent.mean(dim=(2, 3, 4), keepdim=True)


@MODELS.register_module()
class BufferScaleWeight(SignWeight):
    """Its scales are in a buffer; some of them are negative."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer('factor', torch.linspace(-0.5, 2, num_channels))

    def scale(self, latent: Tensor) -> Tensor:
        return self.factor.view(*latent.shape[:2], 1, 1, 1)


SHIPPED_SIGNS = ['PolynomialSign', 'ClippedIdentitySign', 'ShiftedSign', 'SwishSign', 'ErrorDecaySign']
SHIPPED_WEIGHTS = [
    'TensorScaleWeight',
    'ChannelScaleWeight',
    'UnscaledWeight',
    'LearnedScaleWeight',
    'MagnitudeAwareWeight',
    'BalancedWeight',
]
LEAN_SIGNS = [*SHIPPED_SIGNS, 'ChannelWidthSign', 'ThresholdSign']
LEAN_WEIGHTS = [*SHIPPED_WEIGHTS, 'SoftClippedWeight', 'LearnedSoftClippedWeight', 'BufferScaleWeight']
PLAIN_SIGNS, PLAIN_WEIGHTS = ['CentredSign'], ['ClippedWeight', 'ThresholdedWeight', 'OneMagnitude']
LEARNED = ['LearnedScaleWeight', 'LearnedSoftClippedWeight']


def options(activation: str | None, weight: str | None) -> dict:
    chosen = dict(activation=activation, weight=weight)
    return {key: dict(type=f'mmgroupnet.{name}') for key, name in chosen.items() if name is not None}


def build_conv(activation: str | None = None, weight: str | None = None, kind=BinaryConv2d, **kwargs) -> BinaryConv2d:
    """A conv with two bases in double precision. Learned scales have both signs, and some weights are zero."""
    torch.manual_seed(0)
    conv = MODELS.build(
        dict(
            dict(type=f'mmgroupnet.{kind.__name__}', in_channels=3, out_channels=4, kernel_size=3, num_bases=2),
            **options(activation, weight),
            **kwargs,
        )
    )
    with torch.no_grad():
        conv.weight[::3, 0] = 0
        if weight == 'LearnedScaleWeight':
            conv.weight_quantizer.alpha[1::2] *= -1
    return conv.double()


def build_network(activation: str | None = None, weight: str | None = None, **kwargs) -> nn.Module:
    network = small_network(binary_cfg=options(activation, weight), **SMALL, **kwargs)
    if weight == 'LearnedScaleWeight':
        for name, parameter in network.named_parameters():
            if name.endswith('alpha'):
                parameter.data[1::2] *= -1
    return network.double()


def picture(conv: BinaryConv2d) -> Tensor:
    channels = conv.num_folded * conv.in_channels
    return torch.randn(2, channels, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run_backward(conv: BinaryConv2d) -> Tensor:
    """Runs a forward pass, and a backward pass with a random gradient of the output; returns the output."""
    out = conv(picture(conv))
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype))
    return out.detach()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def runs_lean(part: nn.Module) -> bool:
    """Whether a conv, or every block of a network, runs lean."""
    if isinstance(part, BinaryConv2d):
        return can_run_conv(part, picture(part))
    blocks = [block for stage in part.stages for block in stage]
    found = {can_run_chain(block.chain(), images().requires_grad_(), block) for block in blocks}
    assert len(found) == 1
    return found.pop()


def assert_packs(model: nn.Module, x: Tensor, problem: str | None = None) -> None:
    """Checks that a model packs, or that packing reports this problem; the outputs are those of the model in eval
    mode."""
    model, x = copy.deepcopy(nn.Sequential(model)).float().eval(), x.float()
    packed, layers = pack_and_report(model)
    assert {layer.problem for layer in layers} == {problem}
    with torch.no_grad():
        out, expected = packed(x), model(x)
    for found, wanted in zip(*((each if isinstance(each, tuple) else [each]) for each in (out, expected)), strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class TestRunsLean:
    """Quantizers that follow the documented contract run lean with the results of plain training, and they pack."""

    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize(
        'activation, weight',
        [(sign, None) for sign in LEAN_SIGNS] + [(None, weight) for weight in LEAN_WEIGHTS],
    )
    def test_in_a_conv(self, activation, weight, kind):
        conv = build_conv(activation, weight, kind)
        assert runs_lean(conv)
        assert_lean_is_plain(conv, [picture(conv)], 1e-9)
        assert_packs(conv, picture(conv))

    @pytest.mark.parametrize(
        'activation, weight',
        [(sign, None) for sign in LEAN_SIGNS] + [(None, weight) for weight in LEAN_WEIGHTS],
    )
    def test_in_a_network(self, activation, weight):
        network = build_network(activation, weight)
        assert runs_lean(network)
        assert_lean_is_plain(network, [images()], 1e-9)
        assert_packs(network, images())

    @pytest.mark.parametrize('weight', SHIPPED_WEIGHTS[3:])
    def test_in_float32_by_the_kernels(self, weight):
        for sign in ('SwishSign', 'ChannelWidthSign', 'ThresholdSign'):
            conv = build_conv(sign, weight).float()
            assert_lean_is_plain(conv, [picture(conv).float()], 1e-5)

    def test_state_shapes_the_gradient(self):
        conv = build_conv('ChannelWidthSign')
        x = torch.zeros(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)
        conv(x).backward(torch.ones(1, 8, 1, 1, dtype=torch.float64))
        width = torch.linspace(0.5, 1.5, 6)
        straight = conv.effective_weight().detach().unflatten(0, (2, 4)).sum(1).flatten(0, 1)
        assert_close(x.grad[0], straight / width.double().view(6, 1, 1))

    def test_a_learned_threshold_gets_its_gradient(self):
        conv = build_conv('ThresholdSign', kernel_size=1)
        x = picture(conv).requires_grad_()
        conv(x).sum().backward()
        shifted = x.detach() - conv.activation.log_threshold.detach().exp().view(-1, 1, 1)
        of_sign = conv.effective_weight().detach().unflatten(0, (2, 4)).sum(1).flatten(0, 1)
        of_shift = ((-shifted.square()).exp() * of_sign).sum((0, 2, 3))
        assert_close(conv.activation.log_threshold.grad, -of_shift * conv.activation.log_threshold.detach().exp())


class TestLearnedScales:
    """Learned scales get gradients in all kinds of convs and at all places in a network."""

    def scales(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: value for name, value in model.named_parameters() if name.endswith(('alpha', 'factor'))}

    @pytest.mark.parametrize('weight', LEARNED)
    @pytest.mark.parametrize('is_lean', [True, False])
    def test_in_a_conv(self, weight, is_lean):
        conv = build_conv(weight=weight, memory_efficient=is_lean)
        (scale,) = self.scales(conv).values()
        with torch.no_grad():
            scale[0] = 0
        latent = conv.weight_quantizer.latent(conv.weight.detach().unflatten(0, (2, 4))).flatten(0, 1)
        y = F.conv2d(binary_sign(picture(conv)), binary_sign(latent.detach()), groups=2)
        out = conv(picture(conv))
        assert_close(out, y * scale.view(-1, 1, 1))
        upstream = torch.randn_like(out)
        out.backward(upstream)
        assert_close(scale.grad, (upstream * y).sum((0, 2, 3)))

    @pytest.mark.parametrize('weight', LEARNED)
    @pytest.mark.parametrize('decomposition', ['soft_gate', 'lbd'])
    def test_in_a_chain_and_in_a_shortcut_that_branches_share(self, weight, decomposition):
        # In training mode a batch norm removes scales, so eval mode is used. There maps are large.
        network = build_network('ErrorDecaySign', weight, decomposition=decomposition).eval()
        assert runs_lean(network)
        assert_lean_is_plain(network, [images()], 1e-9)
        network(images())[-1].square().sum().backward()
        scales = self.scales(network)
        assert any('shortcut' in name for name in scales) and any('units.1' in name for name in scales)
        assert all(scale.grad.abs().max() > 0 for scale in scales.values())

    @pytest.mark.parametrize('weight', LEARNED)
    @pytest.mark.parametrize('learned_scales', [True, False])
    def test_in_a_layerwise_conv(self, weight, learned_scales):
        conv = build_conv(weight=weight, kind=LayerwiseBinaryConv2d, learned_scales=learned_scales)
        assert runs_lean(conv)
        assert_lean_is_plain(conv, [picture(conv)], 1e-9)
        assert_packs(conv, picture(conv))
        run_backward(conv)
        assert all(scale.grad.all() for scale in self.scales(conv).values())


class TestRunsPlain:
    """Quantizers that lean training does not support run plain."""

    def test_an_estimator_with_a_forward_of_its_own(self):
        conv = build_conv('CentredSign', padding=1)
        x = picture(conv)
        centred = x - x.mean((2, 3), keepdim=True)
        assert not runs_lean(conv)
        assert_close(conv(x), build_conv('PolynomialSign', padding=1)(centred))
        network = build_network('CentredSign')
        assert not runs_lean(network)
        network(images())[-1].sum().backward()
        for part, given in ((conv, x), (network, images())):
            assert_packs(part, given, 'CentredSign has a forward of its own')

    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize('memory_efficient', [True, False])
    def test_weights_that_clip_their_gradient(self, kind, memory_efficient):
        conv = build_conv(weight='ClippedWeight', kind=kind, memory_efficient=memory_efficient)
        assert not runs_lean(conv)
        run_backward(conv)
        clipped = conv.weight.detach().abs() > 0.2
        assert 0 < clipped.sum() < clipped.numel()
        assert not conv.weight.grad[clipped].any() and conv.weight.grad[~clipped].all()
        assert_packs(conv, picture(conv))

    def test_weights_that_clip_their_gradient_in_a_network(self):
        network = build_network(weight='ClippedWeight')
        assert not runs_lean(network)
        network(images())[-1].sum().backward()
        weight = network.stages[1][0].units[0].conv.weight
        assert (weight.detach().abs() > 0.2).any() and not weight.grad[weight.detach().abs() > 0.2].any()
        assert_packs(network, images())

    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    def test_signs_of_ones_own(self, kind):
        conv, standard = (build_conv(weight=name, kind=kind) for name in ('ThresholdedWeight', 'ChannelScaleWeight'))
        assert not runs_lean(conv)
        with torch.no_grad():
            standard.weight -= 0.1
        assert_close(run_backward(conv), run_backward(standard))
        assert_close(conv.weight.grad, standard.weight.grad)
        assert_packs(conv, picture(conv))

    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize(
        'weight, problem',
        [
            ('OneMagnitude', None),
            ('TwoMagnitudes', 'TwoMagnitudes gives weights of more than one magnitude per output channel'),
        ],
    )
    def test_a_module_of_ones_own(self, weight, problem, kind):
        conv = build_conv(weight=weight, kind=kind)
        assert not runs_lean(conv)
        run_backward(conv)
        assert conv.weight.grad.all()
        assert_packs(conv, picture(conv), problem)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(
    'activation, weight',
    [(sign, None) for sign in LEAN_SIGNS + PLAIN_SIGNS] + [(None, weight) for weight in LEAN_WEIGHTS + PLAIN_WEIGHTS],
)
class TestModules:
    """Convs with supported quantizers can be traced, exported, copied and pickled."""

    def test_traces_and_exports(self, activation, weight):
        conv = build_conv(activation, weight).float().eval()
        x = picture(conv).float()
        expected = conv(x)
        assert torch.equal(torch.jit.trace(conv, x)(x), expected)
        assert torch.equal(torch.export.export(conv, (x,)).module()(x), expected)

    def test_is_copied_and_pickled(self, activation, weight):
        conv = build_conv(activation, weight)
        expected = run_backward(conv)
        for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            twin.zero_grad()
            assert runs_lean(twin) == runs_lean(conv) and torch.equal(run_backward(twin), expected)
            for parameter, wanted in zip(twin.parameters(), conv.parameters(), strict=True):
                assert torch.equal(parameter.grad, wanted.grad)


class TestRefused:
    """Errors name the class of the quantizer; they are raised when the conv is built or when it runs first."""

    @pytest.mark.parametrize(
        'activation, weight, error, message',
        [
            ('NoGradientSign', None, TypeError, 'NoGradientSign does not define surrogate_gradient'),
            (None, 'NoScaleWeight', TypeError, 'NoScaleWeight does not define scale'),
            ('LearnedWidthSign', None, ValueError, 'LearnedWidthSign has the parameters width, .* no gradient'),
            (
                'LearnedWidthShiftedSign',
                None,
                ValueError,
                'LearnedWidthShiftedSign has the parameters width, .* no gradient',
            ),
            (None, 'LearnedWidthWeight', ValueError, 'LearnedWidthWeight has the parameters width, .* no gradient'),
            (None, 'MeanWeight', ValueError, 'scale of MeanWeight is negative: return magnitudes'),
        ],
    )
    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    def test_when_it_is_built(self, activation, weight, error, message, kind):
        with pytest.raises(error, match=message):
            build_conv(activation, weight, kind)

    @pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
    @pytest.mark.parametrize('run', [lambda conv: conv(picture(conv)), lambda conv: pack(nn.Sequential(conv))])
    def test_signs_that_are_none(self, kind, run):
        with pytest.raises(ValueError, match=r'signs of TernaryWeight are not all -1 or \+1'):
            run(build_conv(weight='TernaryWeight', kind=kind))

    def test_frozen_parameters_need_no_gradient(self):
        class Frozen(LearnedWidthSign):
            def __init__(self) -> None:
                super().__init__()
                self.width.requires_grad_(False)

        assert BinaryConv2d(1, 1, 1, activation=dict(type=Frozen)).activation.width == 1

    def test_a_model_may_be_built_without_data_and_without_gradients(self):
        for context in (torch.device('meta'), torch.no_grad(), torch.inference_mode()):
            with context:
                conv = BinaryConv2d(3, 4, 3, num_bases=2, **options('ThresholdSign', 'LearnedScaleWeight'))
            assert conv.weight_quantizer.alpha.shape == (8,)


def test_the_recipe_of_the_docs():
    text = (Path(__file__).parents[2] / 'docs' / 'quantizers.md').read_text()
    namespace: dict = {}
    for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(block, namespace)
    conv = namespace['conv'].double()
    with torch.no_grad():
        nn.init.normal_(conv.activation.threshold, std=0.2)
        conv.weight_quantizer.factor[0] *= -1
    assert runs_lean(conv)
    assert_lean_is_plain(conv, [picture(conv)], 1e-9)
    assert_packs(conv, picture(conv))
    run_backward(conv)
    assert conv.activation.threshold.grad.all() and conv.weight_quantizer.factor.grad.all()


def test_a_forward_of_the_instance_is_called_and_not_packed():
    conv, x = BinaryConv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    forward = conv.activation.forward
    conv.activation.forward = lambda x: forward(x - 0.5)
    assert not can_run_conv(conv, x)
    expected = BinaryConv2d(3, 4, 3)
    expected.load_state_dict(conv.state_dict())
    assert_close(conv(x), expected(x - 0.5))
    _, (layer,) = pack_and_report(conv)
    assert layer.problem == 'PolynomialSign has a forward of its own'


@pytest.mark.parametrize('name', ['forward', 'signs', 'binarise'])
def test_a_method_of_the_weight_quantizers_instance_counts(name):
    conv, x = BinaryConv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    assert can_run_conv(conv, x)
    setattr(conv.weight_quantizer, name, getattr(conv.weight_quantizer, name))
    assert not can_run_conv(conv, x)
