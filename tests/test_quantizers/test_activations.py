import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mmgroupnet.quantizers import (
    ClippedIdentitySign,
    ErrorDecaySign,
    PolynomialSign,
    ShiftedSign,
    SignActivation,
    SwishSign,
    Tanh,
    binary_sign,
    build_quantizer,
)
from tests.strategies import FLOAT_DTYPES, float_tensors

SIGNS = [PolynomialSign, ClippedIdentitySign, lambda: ShiftedSign(1), SwishSign, ErrorDecaySign]
SIGN_IDS = ['polynomial', 'clipped', 'shifted', 'swish', 'error decay']


def polynomial(x: torch.Tensor) -> torch.Tensor:
    """The surrogate gradient of Bi-Real Net, piece by piece as in the paper."""
    zero = torch.zeros_like(x)
    return torch.where((x >= -1) & (x < 0), 2 + 2 * x, torch.where((x >= 0) & (x < 1), 2 - 2 * x, zero))


class TestValues:
    @pytest.mark.parametrize('sign', SIGNS, ids=SIGN_IDS)
    @pytest.mark.parametrize('dtype', FLOAT_DTYPES, ids=str)
    def test_sign_with_zeros_at_plus_one(self, sign, dtype):
        x = torch.tensor([[-3.0, -1e-4, -0.0, 0.0, 1e-4, 3.0]], dtype=dtype).T
        out = sign().to(dtype)(x)
        assert out.dtype == dtype
        assert out.flatten().tolist() == [-1, -1, 1, 1, 1, 1]

    @pytest.mark.parametrize('shape', [(), (0,), (3,), (2, 3), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
    def test_shape_is_kept(self, shape):
        x = torch.randn(shape)
        out = PolynomialSign()(x)
        assert out.shape == x.shape
        assert_close(out, torch.where(x < 0, -1.0, 1.0))

    def test_infinities(self):
        assert binary_sign(torch.tensor([-torch.inf, torch.inf])).tolist() == [-1, 1]

    def test_input_is_left_alone(self):
        x = torch.tensor([-2.0, -0.0, 2.0])
        PolynomialSign()(x)
        assert x.tolist() == [-2, 0, 2]

    @settings(deadline=None)
    @given(float_tensors())
    def test_output_is_binary(self, x):
        for sign in (make().to(x.dtype) for make in SIGNS):
            out = sign(x.unsqueeze(1))
            assert out.dtype == x.dtype
            assert set(out.unique().tolist()) <= {-1.0, 1.0}
            assert ((out > 0) == (x.unsqueeze(1) >= 0)).all()

    def test_tanh_is_real_valued(self):
        x = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
        out = Tanh()(x)
        out.sum().backward()
        assert_close(out, torch.tanh(x))
        assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)
        assert not isinstance(Tanh(), SignActivation)


class TestGradient:
    def test_polynomial_is_the_triangle(self):
        x = torch.tensor([-1.5, -1.0, -0.25, -0.0, 0.0, 0.25, 1.0, 1.5], requires_grad=True)
        PolynomialSign()(x).sum().backward()
        assert_close(x.grad, torch.tensor([0, 0, 1.5, 2, 2, 1.5, 0, 0.0]))

    def test_clipped_identity_is_the_box(self):
        x = torch.tensor([-1.5, -1.0, -0.25, -0.0, 0.0, 0.25, 1.0, 1.5], requires_grad=True)
        ClippedIdentitySign()(x).sum().backward()
        assert_close(x.grad, torch.tensor([0, 1, 1, 1, 1, 1, 1, 0.0]))

    def test_upstream_gradient_is_a_factor(self):
        x = torch.tensor([-0.5, 0.25, 2.0], requires_grad=True)
        PolynomialSign()(x).backward(torch.tensor([3.0, -2.0, 5.0]))
        assert_close(x.grad, torch.tensor([3.0, -3.0, 0.0]))

    @settings(deadline=None)
    @given(float_tensors())
    def test_closed_forms(self, x):
        for sign, gradient in [
            (PolynomialSign(), polynomial),
            (ClippedIdentitySign(), lambda x: ((x >= -1) & (x <= 1)).to(x.dtype)),
        ]:
            leaf = x.clone().requires_grad_()
            sign(leaf).sum().backward()
            assert leaf.grad.dtype == x.dtype
            assert_close(leaf.grad, gradient(x))

    @settings(deadline=None)
    @given(float_tensors(dtypes=(torch.float64,)))
    def test_polynomial_is_the_derivative_of_its_approximation(self, x):
        # Bi-Real Net uses the derivative of this function in the backward pass; here autograd computes it.
        leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        PolynomialSign()(leaf).sum().backward()
        clipped = reference.clamp(-1, 1)
        (2 * clipped - clipped * clipped.abs()).sum().backward()
        assert_close(leaf.grad, reference.grad)

    @pytest.mark.parametrize('sign', SIGNS, ids=SIGN_IDS)
    @pytest.mark.parametrize('dtype', FLOAT_DTYPES, ids=str)
    def test_is_finite_at_the_ends_of_every_dtype(self, sign, dtype):
        largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).tiny
        x = torch.tensor([[-largest, -20, -smallest, 0.0, smallest, 20, largest]], dtype=dtype).T.requires_grad_()
        sign().to(dtype)(x).sum().backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()


class TestSwishSign:
    def test_gradient_at_chosen_points(self):
        # With z = beta * x = 2, tanh(z / 2) = 0.761594 and cosh(z) = 3.762196.
        x = torch.tensor([-0.4, -0.0, 0.0, 0.4, 2.0], requires_grad=True)
        SwishSign()(x).sum().backward()
        at_two = 5 * (2 - 2 * 0.761594) / (1 + 3.762196)
        at_ten = 5 * (2 - 10 * 0.999909) / (1 + 11013.233)
        assert_close(x.grad, torch.tensor([at_two, 5, 5, at_two, at_ten]), rtol=1e-4, atol=0)
        assert at_ten < 0  # the surrogate gradient is negative far from zero

    @settings(deadline=None)
    @given(float_tensors(dtypes=(torch.float64,)), st.floats(0.5, 10))
    def test_gradient_is_the_derivative_of_sign_swish(self, x, beta):
        leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        SwishSign(beta)(leaf).sum().backward()
        z = beta * reference
        (2 * z.sigmoid() * (1 + z * (1 - z.sigmoid())) - 1).sum().backward()
        assert_close(leaf.grad, reference.grad, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize('beta', [0, -1, float('nan')])
    def test_beta_is_above_zero(self, beta):
        with pytest.raises(ValueError, match='beta=.*: give the sharpness of SwishSign, a number above 0'):
            SwishSign(beta)

    def test_shows_its_sharpness(self):
        assert repr(SwishSign(2.5)) == 'SwishSign(beta=2.5)'


class TestShiftedSign:
    def test_starts_unshifted(self):
        assert_close(ShiftedSign(3).shift, torch.zeros(3), check_stride=False, atol=0, rtol=0)

    @pytest.mark.parametrize('shape', [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
    def test_values_per_channel(self, shape):
        sign = ShiftedSign(3).double()
        with torch.no_grad():
            sign.shift.copy_(torch.tensor([-0.5, 0.0, 0.5]))
        x = torch.rand(shape, dtype=torch.float64) * 2 - 1
        out = sign(x)
        for channel, shift in enumerate([-0.5, 0.0, 0.5]):
            assert_close(out[:, channel], torch.where(x[:, channel] >= -shift, 1.0, -1.0).double())

    def test_gradients_of_input_and_shift(self):
        sign = ShiftedSign(2).double()
        with torch.no_grad():
            sign.shift.copy_(torch.tensor([0.25, -0.75]))
        x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(3, 2, 4, 5, dtype=torch.float64)
        sign(x).backward(upstream)
        expected = upstream * polynomial(x.detach() + torch.tensor([0.25, -0.75]).double().view(1, 2, 1, 1))
        assert_close(x.grad, expected)
        assert_close(sign.shift.grad, expected.sum(dim=(0, 2, 3)))

    def test_state_dict_round_trip(self):
        sign, other = ShiftedSign(4), ShiftedSign(4)
        torch.nn.init.uniform_(sign.shift, -1, 1)
        assert list(sign.state_dict()) == ['shift']
        other.load_state_dict(sign.state_dict())
        x = torch.randn(2, 4, 3, 3)
        assert torch.equal(other(x), sign(x))

    def test_the_others_hold_nothing(self):
        assert not any(sign().state_dict() for sign in (PolynomialSign, ClippedIdentitySign, SwishSign, ErrorDecaySign))


class TestBuild:
    @pytest.mark.parametrize('cls', [PolynomialSign, ClippedIdentitySign, ShiftedSign, SwishSign, ErrorDecaySign, Tanh])
    def test_from_config(self, cls):
        assert type(build_quantizer(dict(type=f'mmgroupnet.{cls.__name__}'), num_channels=7)) is cls

    def test_channels_go_to_whom_they_concern(self):
        cfg = dict(type='mmgroupnet.ShiftedSign')
        assert build_quantizer(cfg, num_channels=7).shift.shape == (7,)
        assert cfg == dict(type='mmgroupnet.ShiftedSign')

    def test_unknown_type(self):
        with pytest.raises(KeyError, match='mmgroupnet.PolynomialSing is not in the mmgroupnet::model registry'):
            build_quantizer(dict(type='mmgroupnet.PolynomialSing'), num_channels=7)

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match='PolynomialSign'):
            build_quantizer(dict(type='mmgroupnet.PolynomialSign', slope=2), num_channels=7)

    def test_a_new_estimator_is_one_class(self):
        class Identity(SignActivation):
            @staticmethod
            def surrogate_gradient(x):
                return torch.ones_like(x)

        x = torch.tensor([-3.0, 3.0], requires_grad=True)
        out = Identity()(x)
        out.sum().backward()
        assert out.tolist() == [-1, 1] and x.grad.tolist() == [1, 1]

    def test_an_estimator_needs_its_gradient(self):
        with pytest.raises(TypeError, match='abstract'):
            type('Incomplete', (SignActivation,), {})()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_a_shift_of_another_dtype_leaves_that_of_the_map(dtype):
    assert ShiftedSign(3)(torch.randn(2, 3, 4, 5, dtype=dtype)).dtype == dtype
