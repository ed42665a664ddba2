"""Half precision and autocast: products and sums over pixels are float32, and nothing overflows that float32 holds."""

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, Chain, ChainUnit, run_chain
from mmgroupnet.ops import Residual, kernels
from mmgroupnet.ops.passes import KernelPasses, TorchPasses, choose_passes
from tests.test_layers.test_lean.comparison import DECOMPOSITIONS, set_lean, small_network

HALVES = (torch.float16, torch.bfloat16)
# Distance to float32, relative to the norm: eleven bits and eight.
ROUNDING = {torch.float16: 0.02, torch.bfloat16: 0.15}


@pytest.fixture(params=['kernels', 'torch'])
def backend(request):
    """Runs a test with the CPU's kernels, and as a device without them does."""
    if request.param == 'kernels':
        if kernels.library() is None:
            pytest.skip('the kernels were not compiled')
        yield 'kernels'
    else:
        with mock.patch.object(kernels, 'library', lambda: None):
            yield 'torch'


def distance(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)).item()


def gradients(model: nn.Module, x: Tensor, dtype: torch.dtype | None, scale: float = 1.0) -> dict[str, Tensor]:
    """Gradients of a loss that is scaled as a GradScaler does, and scaled back."""
    model = copy.deepcopy(model)
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = model(x)
        out = (out if isinstance(out, Tensor) else out[-1]).float()
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean()
    (loss * scale).backward()
    return {name: value.grad / scale for name, value in model.named_parameters()}


class TestBackends:
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
    def test_the_cpu_computes_in_single_precision(self, dtype):
        if kernels.library() is None:
            pytest.skip('the kernels were not compiled')
        weight = torch.ones(1)
        assert isinstance(choose_passes(torch.ones(1, dtype=dtype), weight, 'a conv'), KernelPasses)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert isinstance(choose_passes(torch.ones(1, dtype=dtype), weight, 'a conv'), KernelPasses)

    def test_others_convolve_in_the_dtype_of_autocast(self):
        x = torch.ones(1, device='meta')
        assert choose_passes(x.double(), x, 'a conv').dtype == torch.float64
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = choose_passes(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 'a conv')
        assert isinstance(found, TorchPasses) and found.dtype == torch.bfloat16

    def test_a_dtype_without_kernels_is_refused(self):
        conv = BinaryConv2d(3, 4, 3)
        allowed = 'it trains in torch.float16, torch.bfloat16, '
        with pytest.raises(ValueError, match=f'a conv under inputs of torch.float8_e4m3fn: {allowed}'):
            choose_passes(torch.ones(1).to(torch.float8_e4m3fn), conv.weight, 'a conv')
        before = torch.get_autocast_dtype('cpu')
        try:
            torch.set_autocast_enabled('cpu', True)
            torch.set_autocast_dtype('cpu', torch.float8_e5m2)
            with pytest.raises(ValueError, match=rf'(?s)BinaryConv2d.* autocast of torch.float8_e5m2: {allowed}'):
                conv(torch.randn(1, 3, 5, 5))
            with pytest.raises(ValueError, match=r'(?s)begins with BinaryConv2d\(.*autocast of torch.float8_e5m2'):
                chain = Chain((ChainUnit(conv, nn.BatchNorm2d(4)),), 1)
                run_chain(chain, torch.randn(1, 3, 5, 5))
        finally:
            torch.set_autocast_enabled('cpu', False)
            torch.set_autocast_dtype('cpu', before)


@pytest.mark.parametrize('dtype', HALVES)
class TestSums:
    """The examples in which half precision overflows."""

    def test_products_of_gradients_and_integers(self, dtype):
        gradient = torch.full((1, 1, 4, 4), 100.0, dtype=dtype)
        y = torch.full((1, 1, 4, 4), 1000.0, dtype=dtype)
        sums = TorchPasses(dtype).gradient_sums(gradient, y, relu=True)
        assert_close(sums, torch.tensor([[1600.0], [1.6e6]], dtype=torch.float64))

    def test_sums_over_all_pixels(self, dtype):
        shape = (8, 1, 100, 168)
        gradient = torch.full(shape, 0.6, dtype=dtype)
        ones = torch.ones(1, dtype=torch.float64)
        branch = TorchPasses(dtype).affine_gradient(gradient, torch.ones(shape), ones, 0 * ones, 0 * ones, 1, True)
        _, total = branch(0, False)
        assert total.dtype == torch.float32
        assert_close(total.item(), float(gradient[0, 0, 0, 0]) * gradient.numel(), rtol=1e-4, atol=0)

    def test_gates(self, dtype):
        x = torch.full((4, 2, 100, 100), 3.0, dtype=dtype)
        x[:, 1] = 1.0
        gate, scales = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.5])
        _, of_gate, of_scales = TorchPasses(dtype).connect_gradient(torch.full_like(x, 8.0), x, gate, scales)
        # m = 2; g * (x - m) = +-8 in 40,000 pixels; (1 - gate) * g sums up to 10.
        assert_close(of_gate, torch.tensor([320000.0, -320000.0]))
        assert_close(of_scales, torch.tensor([1.2e6, 4e5]))

    def test_gradients_of_a_conv(self, dtype, backend):
        """A sum over pixels beyond half precision, with a padding that adds the sum of all gradients."""
        conv = BinaryConv2d(1, 1, 3, padding=1, weight=dict(type='mmgroupnet.UnscaledWeight'))
        x = torch.ones(4, 1, 200, 200, requires_grad=True)
        with torch.autocast('cpu', dtype=dtype):
            out = conv(x)
        assert out.dtype == dtype
        (out.float() * 0.25).sum().backward()
        expected = 0.25 * 4 * 200 * 200
        found = conv.weight.grad
        if backend == 'torch':  # as any convolution under autocast, the gradient of the weight is of half precision
            assert_close(found, torch.full_like(found, expected), rtol=ROUNDING[dtype], atol=0)
        else:
            assert_close(found, torch.full_like(found, expected))


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('scale', [1.0, 2.0**8, 2.0**16])
@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
def test_gradients_under_autocast_are_those_of_plain_training(decomposition, scale, dtype, backend):
    """Of one block in evaluation mode, so that rounding cannot turn the signs of many: the norms are fixed."""
    network = small_network(decomposition=decomposition, stage_blocks=(1,), strides=(1,), norm_eval=True).train()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lean, plain = (gradients(set_lean(network, is_lean), x, dtype, scale) for is_lean in (True, False))
    exact = gradients(set_lean(network, False), x, None)
    for name, value in exact.items():
        if not value.any():
            continue
        assert lean[name].isfinite().all() or not plain[name].isfinite().all(), name
        if plain[name].isfinite().all():
            allowed = max(2 * distance(plain[name], value), ROUNDING[dtype])
            assert distance(lean[name], value) <= allowed, (name, distance(lean[name], value), allowed)


@pytest.mark.parametrize('dtype', HALVES)
def test_float_shortcut_under_autocast(dtype, backend):
    torch.manual_seed(0)
    shortcut = ChainUnit(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6), relu=False)
    conv = BinaryConv2d(4, 6, 3, 2, 'same', num_bases=2)
    chain = Chain((ChainUnit(conv, nn.BatchNorm2d(12), residual=Residual.SHORTCUT),), 2, shortcut, recompute=True)
    x = torch.randn(2, 8, 10, 12)
    found = {}
    for each in (None, dtype):
        shortcut.conv.zero_grad()
        with torch.autocast('cpu', dtype=each, enabled=each is not None):
            given = x.detach().to(each or x.dtype, copy=True).requires_grad_()
            out = run_chain(chain, given)
        assert out.dtype == given.dtype
        out.float().square().sum().backward()
        found[each] = (out.float(), given.grad.float(), shortcut.conv.weight.grad.clone())
    for value, expected in zip(found[dtype], found[None], strict=True):
        assert distance(value, expected) < 2 * ROUNDING[dtype]
