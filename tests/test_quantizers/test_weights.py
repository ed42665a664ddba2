import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mmgroupnet.quantizers import (
    BalancedWeight,
    ChannelScaleWeight,
    LearnedScaleWeight,
    MagnitudeAwareWeight,
    RealWeight,
    SignWeight,
    TensorScaleWeight,
    UnscaledWeight,
    build_quantizer,
)
from mmgroupnet.registry import MODELS
from tests.strategies import FLOAT_DTYPES, seeds

STRAIGHT = [TensorScaleWeight, ChannelScaleWeight, UnscaledWeight]
QUANTIZERS = [*STRAIGHT, MagnitudeAwareWeight, BalancedWeight]


@st.composite
def folded_weights(draw) -> tuple[torch.Tensor, int]:
    """Latent weights of K folded branches, some with a zero or a negative zero, and K."""
    num_bases = draw(st.integers(1, 4))
    shape = [num_bases * draw(st.integers(1, 4)), *(draw(st.integers(1, 3)) for _ in range(3))]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds())), dtype=torch.float64)
    weight.view(-1)[0] = draw(st.sampled_from([0.0, -0.0, 1.0]))
    return weight, num_bases


def signs(weight: torch.Tensor) -> torch.Tensor:
    return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)


class TestValues:
    # Two branches with two filters each, and two weights per filter.
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0], [-0.5, -0.0], [0.5, -1.0]]).view(4, 2, 1, 1)

    @pytest.mark.parametrize(
        'quantizer, num_bases, expected',
        [
            (TensorScaleWeight, 1, [[1.25, -1.25], [1.25, 1.25], [-1.25, 1.25], [1.25, -1.25]]),
            (TensorScaleWeight, 2, [[2.0, -2.0], [2.0, 2.0], [-0.5, 0.5], [0.5, -0.5]]),
            (ChannelScaleWeight, 1, [[2.0, -2.0], [2.0, 2.0], [-0.25, 0.25], [0.75, -0.75]]),
            (ChannelScaleWeight, 2, [[2.0, -2.0], [2.0, 2.0], [-0.25, 0.25], [0.75, -0.75]]),
            (MagnitudeAwareWeight, 2, [[2.0, -2.0], [2.0, 2.0], [-0.25, 0.25], [0.75, -0.75]]),
            (BalancedWeight, 2, [[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]),
            (UnscaledWeight, 2, [[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]),
            (RealWeight, 2, [[1.0, -3.0], [0.0, 4.0], [-0.5, 0.0], [0.5, -1.0]]),
        ],
    )
    @pytest.mark.parametrize('dtype', FLOAT_DTYPES, ids=str)
    def test_by_hand(self, quantizer, num_bases, expected, dtype):
        out = quantizer()(self.weight.to(dtype), num_bases)
        assert_close(out, torch.tensor(expected, dtype=dtype).view(4, 2, 1, 1), rtol=0, atol=0)

    def test_latent_weights_are_left_alone(self):
        weight = self.weight.clone()
        for quantizer in QUANTIZERS:
            quantizer()(weight, 2)
        assert torch.equal(weight, self.weight)

    @settings(deadline=None)
    @given(folded_weights())
    def test_scales_are_mean_magnitudes(self, drawn):
        weight, num_bases = drawn
        size = len(weight) // num_bases
        for branch in range(num_bases):
            rows = slice(branch * size, (branch + 1) * size)
            latent = weight[rows]
            tensor_scale = latent.abs().sum() / latent.numel()
            assert_close(TensorScaleWeight()(weight, num_bases)[rows], signs(latent) * tensor_scale)
            for channel in range(size):
                channel_scale = latent[channel].abs().sum() / latent[channel].numel()
                out = ChannelScaleWeight()(weight, num_bases)[rows][channel]
                assert_close(out, signs(latent[channel]) * channel_scale)

    @settings(deadline=None)
    @given(folded_weights())
    def test_folded_is_each_branch_alone(self, drawn):
        weight, num_bases = drawn
        for quantizer in (*QUANTIZERS, RealWeight):
            alone = [quantizer()(branch) for branch in weight.chunk(num_bases)]
            assert_close(quantizer()(weight, num_bases), torch.cat(alone))

    @settings(deadline=None)
    @given(folded_weights())
    def test_unscaled_is_binary(self, drawn):
        assert torch.equal(UnscaledWeight()(*drawn), signs(drawn[0]))


class TestGradient:
    @settings(deadline=None)
    @given(folded_weights(), seeds())
    def test_identity_to_latent_weights(self, drawn, seed):
        weight, num_bases = drawn
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
        for quantizer in (*STRAIGHT, RealWeight):
            # Nothing is clipped: weights far outside of [-1, 1] get the gradient as well.
            latent = (100 * weight).requires_grad_()
            quantizer()(latent, num_bases).backward(upstream)
            assert torch.equal(latent.grad, upstream)

    @pytest.mark.parametrize('quantizer', [*QUANTIZERS, lambda: LearnedScaleWeight(4)])
    @pytest.mark.parametrize('dtype', FLOAT_DTYPES, ids=str)
    def test_is_finite(self, quantizer, dtype):
        """The four channels have zeros, equal weights, small weights and large weights."""
        weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        weight = (weight * torch.tensor([0, 0, 1e-3, 100]).view(-1, 1, 1, 1)).to(dtype)
        weight[1] = 0.1
        latent, quantizer = weight.requires_grad_(), quantizer().to(dtype)
        quantizer(latent, 2).sum().backward()
        signs, scale = quantizer.signs(latent, 2)
        assert signs.abs().eq(1).all() and scale.ge(0).all() and scale.isfinite().all()
        for value in (latent, *quantizer.parameters()):
            assert value.grad.dtype == dtype and value.grad.abs().max() < 1e4


class TestLearnedScaleWeight:
    weight = torch.tensor([[0.5, -3.0], [-0.0, 4.0], [1.0, 2.0]]).view(3, 2, 1, 1)

    def quantizer(self, *alpha: float) -> LearnedScaleWeight:
        quantizer = LearnedScaleWeight(3)
        with torch.no_grad():
            quantizer.alpha.copy_(torch.tensor(alpha))
        return quantizer

    def test_starts_at_the_mean_magnitudes(self):
        quantizer = LearnedScaleWeight(3)
        quantizer.start(self.weight)
        assert quantizer.alpha.tolist() == [1.75, 2.0, 1.5]
        assert torch.equal(quantizer(self.weight), ChannelScaleWeight()(self.weight))

    def test_gradient_is_that_of_the_weights_times_their_signs(self):
        quantizer, latent = self.quantizer(2, 0.5, 0.25), self.weight.clone().requires_grad_()
        upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).view(3, 2, 1, 1)
        quantizer(latent).backward(upstream)
        assert quantizer.alpha.grad.tolist() == [1 - 2, 3 + 4, 5 + 6]
        assert torch.equal(latent.grad, upstream)

    @pytest.mark.parametrize('by', ['forward', 'signs'])
    def test_a_negative_scale_turns_the_signs(self, by):
        quantizer, latent = self.quantizer(2, -0.5, -0.25), self.weight.clone().requires_grad_()
        if by == 'forward':
            out = quantizer(latent)
        else:
            signs, scale = quantizer.signs(latent)
            assert scale.tolist() == [2, 0.5, 0.25]
            out = signs * scale.view(-1, 1, 1, 1)
        # The sign of a zero flips as well.
        assert out.flatten(1).tolist() == [[2, -2], [-0.5, -0.5], [-0.25, -0.25]]
        upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).view(3, 2, 1, 1)
        out.backward(upstream)
        # With a negative scale a larger weight gives a smaller product, so the gradient is negated.
        assert_close(latent.grad.flatten(1), torch.tensor([[1.0, 2.0], [-3.0, -4.0], [-5.0, -6.0]]))
        assert_close(quantizer.alpha.grad, torch.tensor([1.0 - 2.0, 3.0 + 4.0, 5.0 + 6.0]))

    def test_a_scale_of_zero_moves(self):
        quantizer = self.quantizer(0, 0, 0)
        quantizer(self.weight).sum().backward()
        assert quantizer.alpha.grad.tolist() == [0, 2, 2]


class TestMagnitudeAwareWeight:
    def test_gradient_is_scaled_and_clipped(self):
        weight = torch.tensor([[0.5, -1.5], [-0.0, 0.25], [1.0, -1.0]]).view(3, 2, 1, 1).requires_grad_()
        upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).view(3, 2, 1, 1)
        MagnitudeAwareWeight()(weight).backward(upstream)
        # alpha is 1, 0.125 and 1; weights of magnitude 1 and more get no gradient.
        assert weight.grad.flatten(1).tolist() == [[1, 0], [0.375, 0.5], [0, 0]]

    @settings(deadline=None)
    @given(folded_weights(), seeds())
    def test_closed_form(self, drawn, seed):
        weight, num_bases = drawn
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
        latent = weight.clone().requires_grad_()
        MagnitudeAwareWeight()(latent, num_bases).backward(upstream)
        alpha = weight.abs().mean((1, 2, 3), keepdim=True)
        assert_close(latent.grad, torch.where(weight.abs() < 1, alpha * upstream, 0.0))


class TestBalancedWeight:
    def test_half_of_the_signs_are_positive(self):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(8, 32, 3, 3, generator=generator)
        mirrored = 3 + torch.cat([weight, -weight], dim=1)
        assert (mirrored > 0).float().mean() > 0.99
        assert_close(BalancedWeight()(mirrored, 2).sign().mean((1, 2, 3)), torch.zeros(8), rtol=0, atol=0.01)
        # Without mirrored weights about half of the signs are positive.
        assert BalancedWeight()(3 + weight).sign().mean((1, 2, 3)).abs().max() < 0.1

    def test_scale_is_a_power_of_two(self):
        # The mean of |u| is 0.8 for normal weights. For 63 zeros and a one it is 2 * sqrt(63) / 64 = 0.248.
        weight = torch.randn(2, 64, 1, 1, generator=torch.Generator().manual_seed(0))
        weight[1] = torch.eye(1, 64).view(64, 1, 1)
        assert BalancedWeight().signs(weight)[1].tolist() == [1, 0.25]

    @settings(deadline=None)
    @given(folded_weights())
    def test_scale_is_the_power_of_two_nearest_to_the_mean_magnitude(self, drawn):
        weight, num_bases = drawn
        latent, scale = BalancedWeight().binarise(weight, num_bases)
        magnitude = latent.abs().mean((1, 2, 3))
        assert scale[magnitude == 0].eq(0).all()
        ratio = (scale / magnitude)[magnitude > 0]
        assert ((ratio > 0.707) & (ratio < 1.415)).all()
        assert (torch.frexp(scale[magnitude > 0]).mantissa == 0.5).all()


class TestBuild:
    @pytest.mark.parametrize('quantizer', [*QUANTIZERS, LearnedScaleWeight, RealWeight])
    def test_from_config(self, quantizer):
        built = build_quantizer(dict(type=f'mmgroupnet.{quantizer.__name__}'), num_channels=7)
        assert type(built) is quantizer
        assert isinstance(built, SignWeight) == (quantizer is not RealWeight)
        shapes = {name: tuple(value.shape) for name, value in built.state_dict().items()}
        assert shapes == (dict(alpha=(7,)) if quantizer is LearnedScaleWeight else {})

    def test_unknown_type(self):
        with pytest.raises(KeyError, match='mmgroupnet.TensorScale is not in the mmgroupnet::model registry'):
            MODELS.build(dict(type='mmgroupnet.TensorScale'))
