"""Half precision and autocast: sums over pixels do not overflow, and gradients are those of plain training."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmgroupnet.layers import BinaryConv2d, Chain, ChainUnit, run_chain
from mmgroupnet.ops import Residual, kernels
from tests.lean_comparison import DECOMPOSITIONS, set_lean, small_network

HALVES = (torch.float16, torch.bfloat16)
# Distance to float32, relative to the norm: float16 has eleven significant bits, bfloat16 eight.
ROUNDING = {torch.float16: 0.02, torch.bfloat16: 0.15}


@pytest.fixture(params=['kernels', 'kernels, gradients in bfloat16', 'torch'])
def backend(request, monkeypatch):
    """Runs a test with the CPU's kernels, as on processors without and with bfloat16, and with the passes in torch of
    devices without kernels."""
    if request.param == 'torch':
        monkeypatch.setattr(kernels, 'library', lambda: None)
    elif kernels.library() is None:
        pytest.skip('the kernels were not compiled')
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: 'bfloat16' in request.param)
    return request.param


def distance(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)).item()


def gradients(model: nn.Module, x: Tensor, dtype: torch.dtype | None, scale: float = 1.0) -> dict[str, Tensor]:
    """Gradients of a loss that is multiplied by ``scale``, as by a GradScaler, divided by ``scale`` again."""
    model = copy.deepcopy(model)
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = model(x)
        out = (out if isinstance(out, Tensor) else out[-1]).float()
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean()
    (loss * scale).backward()
    return {name: value.grad / scale for name, value in model.named_parameters()}


def test_a_dtype_without_kernels_is_refused_by_the_name_of_the_conv():
    conv, x = BinaryConv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    before = torch.get_autocast_dtype('cpu')
    try:
        torch.set_autocast_enabled('cpu', True)
        torch.set_autocast_dtype('cpu', torch.float8_e5m2)
        with pytest.raises(ValueError, match=r'(?s)BinaryConv2d.* autocast of torch.float8_e5m2: it trains in'):
            conv(x)
        with pytest.raises(ValueError, match=r'(?s)begins with BinaryConv2d\(.*autocast of torch.float8_e5m2'):
            run_chain(Chain((ChainUnit(conv, nn.BatchNorm2d(4)),), 1), x)
    finally:
        torch.set_autocast_enabled('cpu', False)
        torch.set_autocast_dtype('cpu', before)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize(('mean', 'deviation'), [(0.6, 0.0), (0.6, 0.1), (0.1, 1.0)])
@pytest.mark.parametrize('kernel', [1, 3])
def test_gradients_of_a_conv_over_many_pixels(dtype, backend, kernel, mean, deviation):
    """The sums of gradients exceed the range or precision of half precision; the error must not be larger than with
    plain autocast."""
    torch.manual_seed(0)
    conv = BinaryConv2d(1, 2, kernel, padding='same', weight=dict(type='mmgroupnet.ChannelScaleWeight'))
    x = torch.randn(4, 1, 160, 160)
    upstream = mean + deviation * torch.randn(4, 2, 160, 160)

    def gradient_of(is_lean: bool, half: torch.dtype | None) -> Tensor:
        set_lean(conv, is_lean).zero_grad()
        with torch.autocast('cpu', dtype=half, enabled=half is not None):
            out = conv(x)
        assert out.dtype == (half or torch.float32)
        out.backward(upstream.to(out.dtype))
        return conv.weight.grad.clone()

    exact = gradient_of(False, None)
    lean, plain = (distance(gradient_of(is_lean, dtype), exact) for is_lean in (True, False))
    assert lean <= max(2 * plain, 1e-3), (lean, plain)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('scale', [1.0, 2.0**8, 2.0**16])
@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
def test_gradients_under_autocast_are_those_of_plain_training(decomposition, scale, dtype, backend):
    """The network has one block with norms in evaluation mode, so a sign that rounding flips affects few others."""
    network = small_network(decomposition=decomposition, stage_blocks=(1,), strides=(1,), norm_eval=True).train()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lean, plain = (gradients(set_lean(network, is_lean), x, dtype, scale) for is_lean in (True, False))
    exact = gradients(set_lean(network, False), x, None)
    compared = [name for name, value in exact.items() if value.any() and plain[name].isfinite().all()]
    assert compared
    for name in compared:
        allowed = max(2 * distance(plain[name], exact[name]), ROUNDING[dtype])
        assert lean[name].isfinite().all(), name
        assert distance(lean[name], exact[name]) <= allowed, (name, distance(lean[name], exact[name]), allowed)


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
