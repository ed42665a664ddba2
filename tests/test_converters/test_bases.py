"""Bases made from a float layer: with the scale in use their mean is close to the float weights, and they differ from
each other."""

import copy

import pytest
import torch
from mmcv.cnn import NonLocal2d
from torch import nn
from torch.testing import assert_close

import mmgroupnet
from mmgroupnet.converters import binarization_of
from mmgroupnet.converters.bases import branch_weight, fit_bases
from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.quantizers import ChannelScaleWeight, RealWeight, SignWeight, TensorScaleWeight, UnscaledWeight

QUANTIZERS = [TensorScaleWeight(), ChannelScaleWeight(), UnscaledWeight()]


class LearnedBaseScale(SignWeight):
    """A user-defined quantizer with one learned scale per base."""

    def __init__(self, scales=(0.06, 0.06, 0.06, 0.06)):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(scales))

    def scale(self, weight):
        return self.alpha[: len(weight)].view(-1, 1, 1, 1, 1)


class CentredWeight(nn.Module):
    """A user-defined quantizer with its own forward: the signs of weights minus their mean, as in IR-Net."""

    def forward(self, weight, num_bases=1):
        centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        return torch.where(centred >= 0, 1.0, -1.0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(num_bases: int, like: torch.Tensor) -> torch.Tensor:
    return 0.1 * torch.randn(num_bases * len(like), *like.shape[1:])


def merged(bases, quantizer, num_bases):
    return quantizer(bases, num_bases).unflatten(0, (num_bases, -1)).mean(dim=0)


def fit_error(weight, num_bases, quantizer, fitted_for=None):
    """Squared error of the merged weights, divided by the sum of the squared weights."""
    bases = fit_bases(weight, draw(num_bases, weight), fitted_for or quantizer)
    return ((merged(bases, quantizer, num_bases) - weight).square().sum() / weight.square().sum()).item()


def direction_error(weight, num_bases, quantizer):
    """1 minus the squared cosine: the relative squared error with the best scale."""
    bases = fit_bases(weight, draw(num_bases, weight), quantizer)
    cosine = torch.cosine_similarity(merged(bases, quantizer, num_bases).flatten(), weight.flatten(), dim=0)
    return 1 - cosine.square().item()


def assert_bases_differ(bases, num_bases, share=0.5):
    """Checks that in every pair of bases at least this share of the weights differs by more than rounding."""
    bases = bases.detach().unflatten(0, (num_bases, -1))
    for i in range(num_bases):
        for j in range(i):
            differs = (bases[i] - bases[j]).abs() > 1e-4 * bases.abs().max()
            assert differs.float().mean() >= share, (i, j)


class TestFit:
    weight = 0.05 * torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(1))
    # The standard deviations of the channels vary by factors of about e^0.5.
    uneven = weight * torch.randn(32, 1, 1, 1, generator=torch.Generator().manual_seed(2)).mul(0.5).exp()

    @pytest.mark.parametrize('quantizer', QUANTIZERS[:2], ids=['layer', 'channel'])
    def test_the_error_falls_with_every_base(self, quantizer):
        errors = [fit_error(self.weight, num_bases, quantizer) for num_bases in (1, 2, 3, 4)]
        # For a normal distribution one sign leaves 1 - 2 / pi; the other values are those of greedy fits.
        assert errors == pytest.approx([1 - 2 / torch.pi, 0.13, 0.058, 0.033], abs=0.01)

    @pytest.mark.parametrize('quantizer', QUANTIZERS[:2], ids=['layer', 'channel'])
    def test_each_base_takes_all_that_one_scale_can(self, quantizer):
        """Each scale is the least squares solution for its signs, so each base reduces the squared error by its own sum
        of squares."""
        bases = fit_bases(self.uneven, draw(4, self.uneven), quantizer)
        of_bases = quantizer(bases, 4).square().sum() / 16  # each base adds a quarter of its weights to the mean
        left = (merged(bases, quantizer, 4) - self.uneven).square().sum()
        assert_close(left, self.uneven.square().sum() - of_bases, rtol=1e-4, atol=0)

    def test_bases_are_fitted_to_the_scale_in_use(self):
        per_layer, per_channel = QUANTIZERS[:2]
        assert fit_error(self.uneven, 4, per_channel) == pytest.approx(0.033, abs=0.005)
        assert fit_error(self.uneven, 4, per_layer) == pytest.approx(0.15, abs=0.01)
        assert fit_error(self.uneven, 4, per_layer, fitted_for=per_channel) == pytest.approx(0.28, abs=0.01)

    def test_one_base_has_the_weights(self):
        for quantizer in QUANTIZERS:
            assert fit_bases(self.weight, draw(1, self.weight), quantizer) is self.weight

    def test_a_learned_scale_is_what_it_is_now(self):
        """Four bases of scale s have the levels -s, -s/2, 0, s/2 and s; each weight is rounded to the nearest level."""
        quantizer = LearnedBaseScale()
        bases = fit_bases(self.weight, draw(4, self.weight), quantizer)
        found = merged(bases, quantizer, 4)
        assert_close(found, (self.weight / 0.03).round().clamp(-2, 2) * 0.03)

    def test_without_a_scale_the_direction_is_fitted(self):
        errors = [direction_error(self.weight, num_bases, UnscaledWeight()) for num_bases in (1, 2, 3, 4, 5)]
        assert errors == pytest.approx([0.363, 0.206, 0.120, 0.083, 0.065], abs=0.01)

    def test_a_forward_of_a_users_own(self):
        assert direction_error(self.weight, 4, CentredWeight()) == pytest.approx(0.083, abs=0.01)

    def test_real_weights_have_the_float_mean(self):
        for num_bases in (2, 3):
            assert fit_error(self.weight, num_bases, RealWeight()) < 1e-12


@pytest.mark.parametrize('num_bases', [2, 3, 4, 5])
@pytest.mark.parametrize(
    'quantizer',
    [*QUANTIZERS, RealWeight(), LearnedBaseScale([0.05] * 5), CentredWeight()],
    ids=lambda quantizer: type(quantizer).__name__,
)
class TestBasesDiffer:
    def check(self, weight, num_bases, quantizer):
        bases = fit_bases(weight, draw(num_bases, weight), quantizer)
        assert_bases_differ(bases, num_bases)
        return merged(bases, quantizer, num_bases)

    def test_normal_weights(self, quantizer, num_bases):
        self.check(0.05 * torch.randn(8, 8, 3, 3), num_bases, quantizer)

    def test_zeros_stay_zero(self, quantizer, num_bases):
        found = self.check(torch.zeros(8, 8, 3, 3), num_bases, quantizer)
        is_fixed = not isinstance(quantizer, TensorScaleWeight | ChannelScaleWeight | RealWeight)
        if num_bases % 2 == 0 or not is_fixed:
            assert not found.any()
        else:  # The sum of an odd number of signs is not zero.
            scale = 0.05 if isinstance(quantizer, LearnedBaseScale) else 1
            assert_close(found.abs(), torch.full_like(found, scale / num_bases))

    def test_constant_weights(self, quantizer, num_bases):
        weight = 0.05 * (torch.randn(8, 8, 3, 3) > 0).float().mul(2).sub(1)
        found = self.check(weight, num_bases, quantizer)
        if isinstance(quantizer, TensorScaleWeight | ChannelScaleWeight | RealWeight):
            assert_close(found, weight)

    def test_a_channel_of_zeros(self, quantizer, num_bases):
        weight = 0.05 * torch.randn(8, 8, 3, 3)
        weight[3] = 0
        found = self.check(weight, num_bases, quantizer)
        if isinstance(quantizer, ChannelScaleWeight | RealWeight):
            assert not found[3].any()


class TestBranches:
    def test_noise_follows_the_channel(self):
        weight = torch.randn(6, 64, 3, 3) * torch.tensor([1, 10, 0.1, 1, 1, 0]).view(-1, 1, 1, 1)
        noise = branch_weight(weight, is_first=False) - weight
        sizes = noise.square().mean(dim=(1, 2, 3)).sqrt()
        assert_close(sizes[:5], weight.square().mean(dim=(1, 2, 3)).sqrt()[:5], rtol=0.1, atol=0)
        assert 0 < sizes[5] < 1e-6

    def test_the_first_branch_has_the_weights_and_no_scale_of_zero(self):
        weight = torch.randn(3, 4, 1, 1)
        weight[1] = 0
        weight[2, 0] = 0
        found = branch_weight(weight, is_first=True)
        assert torch.equal(found[[0, 2]], weight[[0, 2]])
        assert (found[1] > 0).all() and (found[1] < 1e-6).all()


def train(model, x, target, steps=3, lr=1.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


SCALES = ['TensorScaleWeight', 'ChannelScaleWeight']


class TestNonLocal:
    """The weights of its last conv start at zero, so the block is the identity."""

    def build(self, scale, **rule):
        model = nn.Sequential(NonLocal2d(16, mode='dot_product'))
        assert not model[0].conv_out.conv.weight.any()
        cfg = dict(weight=dict(type=f'mmgroupnet.{scale}'))
        return mmgroupnet.binarize(model, [dict(rule, binary_cfg=cfg)])

    @pytest.mark.parametrize('num_bases', [2, 3, 4])
    @pytest.mark.parametrize('scale', SCALES)
    def test_layerwise(self, scale, num_bases):
        model = self.build(scale, become='layerwise', num_bases=num_bases)
        x, target = torch.randn(2, 4, 16, 6, 6)[:, :2]
        assert torch.equal(model(x), x)
        with torch.no_grad():
            assert torch.equal(pack(copy.deepcopy(model).eval())(x), x)
        conv = model[0].conv_out.conv
        train(model, x, target)
        assert not torch.equal(model(x), x)
        signs = conv.weight.detach().unflatten(0, (num_bases, -1)).sign()
        for i in range(num_bases):
            for j in range(i):
                assert (signs[i] != signs[j]).float().mean() > 0.1
        assert_bases_differ(conv.weight, num_bases)

    @pytest.mark.parametrize('scale', SCALES)
    def test_groupwise(self, scale):
        model = self.build(scale, become='groupwise', types='NonLocal2d', num_bases=3)
        x, target = torch.randn(2, 4, 16, 6, 6)[:, :2]
        assert_close(model(x), x, rtol=0, atol=1e-5)
        train(model, x, target)
        assert (model(x) - x).abs().max() > 1e-3
        branches = [branch.conv_out.conv.weight.detach() for branch in model[0].blocks[0].branches]
        for i in range(3):
            for j in range(i):
                assert (branches[i].sign() != branches[j].sign()).float().mean() > 0.1
        assert binarization_of(model).notes == []


class Residual(nn.Module):
    """A residual block in which the weights of the last conv start at zero."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x):
        return x + self.conv2(self.norm(self.conv1(x)).relu())


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize(
    'rule', [dict(become='layerwise', num_bases=4), dict(become='binary')], ids=['layerwise', 'one']
)
def test_zero_initialised_residuals_are_nothing_and_learn(rule, scale):
    model = mmgroupnet.binarize(
        nn.Sequential(Residual()), [dict(rule, binary_cfg=dict(weight=dict(type=f'mmgroupnet.{scale}')))]
    )
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, BinaryConv2d):
            module.memory_efficient = False
    x, target = torch.randn(2, 4, 8, 6, 6)
    for net in (model, plain):
        assert_close(net(x), x, rtol=0, atol=1e-5)
        (net(x) - target).square().mean().backward()
    gradient = model[0].conv2.weight.grad
    assert gradient.abs().max() > 1e-3
    assert_close(plain[0].conv2.weight.grad, gradient, rtol=1e-3, atol=1e-6)


class TestNotes:
    def test_zeros_that_a_quantizer_does_not_have(self):
        conv = nn.Conv2d(4, 4, 1)
        nn.init.zeros_(conv.weight)
        cfg = dict(weight=dict(type='mmgroupnet.UnscaledWeight'))
        notes = {}
        for num_bases in (2, 3):
            rule = dict(become='layerwise', num_bases=num_bases, binary_cfg=cfg)
            notes[num_bases] = binarization_of(mmgroupnet.binarize(nn.Sequential(copy.deepcopy(conv)), [rule])).notes
        assert notes[2] == []
        assert notes[3] == [
            '0 is zero in the float model, and starts with weights of 0.33, since its quantizer has no smaller ones'
        ]

    def test_a_block_of_nothing_but_zeros(self):
        model = nn.Sequential(Residual())
        nn.init.zeros_(model[0].conv1.weight)
        mmgroupnet.binarize(model, [dict(become='groupwise', types='Residual', num_bases=2)])
        assert binarization_of(model).notes == [
            '0 holds nothing but zeros in the float model: its branches start almost equal'
        ]
