"""The error decay estimator: its gradients of activations and of weights against the paper's formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mmgroupnet.quantizers import BalancedWeight, ErrorDecaySign
from tests.strategies import float_tensors


class TestErrorDecaySign:
    def gradient(self, progress: float, x: list[float]) -> torch.Tensor:
        sign, leaf = ErrorDecaySign(), torch.tensor(x, dtype=torch.float64, requires_grad=True)
        sign.progress = progress
        sign(leaf).sum().backward()
        return leaf.grad

    # 1 - tanh(1)^2 = 0.419974.
    def test_starts_close_to_the_identity(self):
        expected = torch.tensor([0.419974, 0.990066, 1, 1, 0.990066]).double()  # k = 10, t = 0.1
        assert_close(self.gradient(0.0, [-10, -1, -0.0, 0.0, 1]), expected, rtol=0, atol=1e-6)

    def test_has_the_tangent_of_tanh_in_the_middle(self):
        expected = torch.tensor([0.419974, 1, 0.419974, 0.070651]).double()  # k = t = 1
        assert_close(self.gradient(0.5, [-1, 0, 1, 2]), expected, rtol=0, atol=1e-6)

    def test_ends_close_to_the_sign(self):
        expected = torch.tensor([0, 4.19974, 10, 4.19974, 0]).double()  # k = 1, t = 10
        assert_close(self.gradient(1.0, [-2, -0.1, 0, 0.1, 2]), expected, rtol=0, atol=1e-5)

    @settings(deadline=None)
    @given(float_tensors(dtypes=(torch.float64,)), st.floats(0, 1))
    def test_gradient_is_the_derivative_of_its_approximation(self, x, progress):
        reference = x.clone().requires_grad_()
        t = 10 ** (2 * progress - 1)
        (max(1 / t, 1) * torch.tanh(t * reference)).sum().backward()
        assert_close(self.gradient(progress, x.tolist()), reference.grad, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize('t_min, t_max', [(0, 1), (-1, 1), (2, 1)])
    def test_sharpness_rises(self, t_min, t_max):
        with pytest.raises(ValueError, match=f't_min={t_min}, t_max={t_max}: give two numbers with 0 < t_min <= t_max'):
            ErrorDecaySign(t_min, t_max)

    def test_progress_is_shown_and_not_saved(self):
        sign = ErrorDecaySign()
        sign.progress = 0.25
        assert repr(sign) == 'ErrorDecaySign(t_min=0.1, t_max=10.0, progress=0.25)'
        assert not sign.state_dict()


class TestBalancedWeight:
    @pytest.mark.parametrize('progress, t', [(0.0, 0.1), (0.5, 1.0), (1.0, 10.0)])
    def test_gradient_goes_through_the_standardisation(self, progress, t):
        generator = torch.Generator().manual_seed(0)
        weight, upstream = (torch.randn(6, 3, 3, 2, generator=generator).double() for _ in range(2))
        quantizer, latent = BalancedWeight(), weight.clone().requires_grad_()
        quantizer.progress = progress
        quantizer(latent, 2).backward(upstream)

        w = weight.clone().requires_grad_()
        centred = w - w.mean((1, 2, 3), keepdim=True)
        u = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        alpha = 2 ** torch.log2(u.detach().abs().mean((1, 2, 3), keepdim=True)).round()
        surrogate = alpha * max(1 / t, 1) * t * (1 - torch.tanh(t * u.detach()) ** 2)
        u.backward(upstream * surrogate)
        assert_close(latent.grad, w.grad, rtol=1e-9, atol=1e-12)
