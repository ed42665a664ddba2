import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mmgroupnet.quantizers import ChannelScaleWeight, RealWeight, SignWeight, TensorScaleWeight, UnscaledWeight
from mmgroupnet.registry import MODELS
from tests.strategies import FLOAT_DTYPES, seeds

QUANTIZERS = [TensorScaleWeight, ChannelScaleWeight, UnscaledWeight]


@st.composite
def folded_weights(draw) -> tuple[torch.Tensor, int]:
    """Latent weights of K folded branches, with zeros of both kinds among them, and K."""
    num_bases = draw(st.integers(1, 4))
    shape = [num_bases * draw(st.integers(1, 4)), *(draw(st.integers(1, 3)) for _ in range(3))]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds())), dtype=torch.float64)
    weight.view(-1)[0] = draw(st.sampled_from([0.0, -0.0, 1.0]))
    return weight, num_bases


def signs(weight: torch.Tensor) -> torch.Tensor:
    return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)


class TestValues:
    # Two branches of two filters with two weights each.
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0], [-0.5, -0.0], [0.5, -1.0]]).view(4, 2, 1, 1)

    @pytest.mark.parametrize(
        'quantizer, num_bases, expected',
        [
            (TensorScaleWeight, 1, [[1.25, -1.25], [1.25, 1.25], [-1.25, 1.25], [1.25, -1.25]]),
            (TensorScaleWeight, 2, [[2.0, -2.0], [2.0, 2.0], [-0.5, 0.5], [0.5, -0.5]]),
            (ChannelScaleWeight, 1, [[2.0, -2.0], [2.0, 2.0], [-0.25, 0.25], [0.75, -0.75]]),
            (ChannelScaleWeight, 2, [[2.0, -2.0], [2.0, 2.0], [-0.25, 0.25], [0.75, -0.75]]),
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
        for quantizer in (*QUANTIZERS, RealWeight):
            # Unclipped: weights far outside of [-1, 1] get the gradient too.
            latent = (100 * weight).requires_grad_()
            quantizer()(latent, num_bases).backward(upstream)
            assert torch.equal(latent.grad, upstream)


class TestBuild:
    @pytest.mark.parametrize('quantizer', [*QUANTIZERS, RealWeight])
    def test_from_config(self, quantizer):
        built = MODELS.build(dict(type=f'mmgroupnet.{quantizer.__name__}'))
        assert type(built) is quantizer
        assert isinstance(built, SignWeight) == (quantizer is not RealWeight)
        assert not built.state_dict()

    def test_unknown_type(self):
        with pytest.raises(KeyError, match='mmgroupnet.TensorScale is not in the mmgroupnet::model registry'):
            MODELS.build(dict(type='mmgroupnet.TensorScale'))

    def test_a_new_scale_is_one_class(self):
        class MaximumWeight(SignWeight):
            def scale(self, weight):
                return weight.abs().amax(dim=(1, 2, 3, 4), keepdim=True)

        weight = torch.tensor([1.0, -3.0, -0.5, 0.25]).view(4, 1, 1, 1)
        assert MaximumWeight()(weight, 2).flatten().tolist() == [3, -3, -0.5, 0.5]
