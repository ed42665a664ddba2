"""The passes of lean training, for every set of kernels and in torch, against formulas in double precision."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmgroupnet.ops import kernels
from mmgroupnet.ops.float_convolution import convolution_gradients, convolve_signs, sums_over_padding
from mmgroupnet.ops.passes import KernelPasses, Passes, TorchPasses, choose_passes
from mmgroupnet.ops.passes.protocol import Running
from tests.test_ops import oracle
from tests.test_ops.oracle import geometry, random_unit

# Channels of a branch: less than one vector, whole vectors, and whole vectors with a remainder.
CHANNELS = (1, 7, 16, 70)
NUM_BASES = 3


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def maps(channels: int, count: int, num_bases: int = NUM_BASES) -> list[Tensor]:
    return [last(torch.randn(2, num_bases * channels, 17, 19)) for _ in range(count)]


def integers(channels: int) -> Tensor:
    y = torch.randint(-9, 10, (2, NUM_BASES * channels, 17, 19), dtype=torch.int16)
    y[0, 0, 0, :4] = torch.tensor([-32767, 32767, 0, -1], dtype=torch.int16)
    return last(y)


def vectors(channels: int, count: int) -> list[Tensor]:
    return [torch.randn(NUM_BASES * channels) for _ in range(count)]


@pytest.fixture
def passes(kernel_set) -> Passes:
    """The passes of each set of kernels, and those in torch."""
    return TorchPasses(torch.float32) if kernel_set == 'simulated' else KernelPasses()


def rectified(y: Tensor, relu: bool) -> Tensor:
    return y.double().clamp(min=0) if relu else y.double()


def per_channel(vector: Tensor) -> Tensor:
    return vector.double().view(-1, 1, 1)


@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('relu', [False, True])
class TestPassesOverIntegers:
    @pytest.mark.parametrize('has_residual', [False, True])
    def test_affine(self, passes, channels, relu, has_residual):
        y, (residual,), (scale, shift) = integers(channels), maps(channels, 1), vectors(channels, 2)
        out = passes.affine(y, scale, shift, residual if has_residual else None, relu, torch.float32)
        expected = per_channel(scale) * rectified(y, relu) + per_channel(shift)
        assert out.dtype == torch.float32
        assert_close(out.double(), expected + residual if has_residual else expected, rtol=1e-5, atol=1e-5)

    def test_gradient_sums(self, passes, channels, relu):
        (gradient,), y = maps(channels, 1), integers(channels)
        expected = torch.stack([gradient.double(), gradient.double() * rectified(y, relu)]).sum((1, 3, 4))
        assert_close(passes.gradient_sums(gradient, y, relu), expected, rtol=1e-5, atol=1e-2)

    def test_affine_gradient(self, passes, channels, relu):
        y, (gradient,), (p, q, s) = integers(channels), maps(channels, 1), vectors(channels, 3)
        whole = per_channel(p) * gradient + per_channel(q) * y.double() + per_channel(s)
        whole = (whole * (y > 0) if relu else whole).chunk(NUM_BASES, dim=1)
        branch_of = passes.affine_gradient(gradient, y, p, q, s, NUM_BASES, relu)
        for k in range(NUM_BASES):
            assert_close(branch_of(k, True).double(), whole[k], rtol=1e-5, atol=1e-5)
        kept = [branch_of(k, False) for k in range(NUM_BASES)]
        for value, wanted in zip(kept, whole, strict=True):
            assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', CHANNELS)
class TestPassesOverMaps:
    def test_branch_signs(self, passes, channels):
        (x,) = maps(channels, 1)
        x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
        for k, branch in enumerate(x.chunk(NUM_BASES, dim=1)):
            assert torch.equal(passes.branch_signs(x, k, NUM_BASES), torch.where(branch >= 0, 1.0, -1.0))

    @pytest.mark.parametrize('has_residual', [False, True])
    @pytest.mark.parametrize('is_polynomial', [False, True])
    def test_sign_gradient(self, passes, channels, has_residual, is_polynomial):
        x, gradient, residual = maps(channels, 3)
        x[0, 0, 0, :3] = torch.tensor([-1.0, 1.0, 0.0])
        out = torch.empty_like(x)
        for k, part in enumerate(gradient.chunk(NUM_BASES, dim=1)):
            passes.sign_gradient(
                part, x, residual if has_residual else None, k, NUM_BASES, out, None if is_polynomial else torch.cos
            )
        expected = ((2 - 2 * x.abs()).clamp(min=0) if is_polynomial else torch.cos(x)) * gradient
        assert_close(out, expected + residual if has_residual else expected)

    def test_connect_and_its_gradient(self, passes, channels):
        x, gradient = maps(channels, 2)
        gate, scales = torch.rand(NUM_BASES), torch.rand(NUM_BASES)
        leaves = [value.double().requires_grad_() for value in (x, gate, scales)]
        branches = leaves[0].chunk(NUM_BASES, dim=1)
        merged = sum(scale * branch for scale, branch in zip(leaves[2], branches, strict=True))
        out = torch.cat([merged + c * (b - merged) for c, b in zip(leaves[1], branches, strict=True)], dim=1)
        assert_close(passes.connect(x, gate, scales).double(), out.detach(), rtol=1e-5, atol=1e-5)
        expected = torch.autograd.grad(out, leaves, gradient.double())
        for value, wanted in zip(passes.connect_gradient(gradient, x, gate, scales), expected, strict=True):
            assert_close(value.double(), wanted, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize('branches', [1, NUM_BASES])
    @pytest.mark.parametrize('uses_batch', [False, True])
    def test_norm_and_its_gradient(self, passes, channels, uses_batch, branches):
        if passes.norms is None:
            pytest.skip('torch does the arithmetic of norms in double precision, see test_batch_norm')
        y, (gradient,) = integers(channels), maps(channels, 1)
        size = y.shape[1] // branches
        scale, weight, bias, mean, var = (torch.rand(size) + 0.5 for _ in range(5))
        leaves = [value.double().requires_grad_() for value in (y, weight, bias)]
        r = torch.cat((scale.repeat(branches).view(-1, 1, 1) * leaves[0].relu()).chunk(branches, dim=1))
        buffers = [mean.double(), var.double()]
        out = torch.nn.functional.batch_norm(r, *buffers, *leaves[1:], uses_batch, 0.3, 1e-3)
        expected = torch.autograd.grad(out, leaves, torch.cat(gradient.double().chunk(branches, dim=1)))

        running = Running(mean, var, None, 0.3, uses_batch)
        *statistics, vectors = passes.norms.statistics(
            y, True, branches, scale, weight, bias, running, 1e-3, uses_batch
        )
        assert_close([mean.double(), var.double()], buffers, rtol=1e-5, atol=1e-5)
        found = passes.affine(y, *vectors, None, True, torch.float32)
        assert_close(torch.cat(found.double().chunk(branches, dim=1)), out.detach(), rtol=1e-4, atol=1e-4)
        of_weight, of_bias, of_y = passes.norms.gradients(
            gradient, y, True, branches, statistics, scale, weight, uses_batch
        )
        of_branch = passes.affine_gradient(gradient, y, *of_y, NUM_BASES, True)
        of_maps = torch.cat([of_branch(k, False) for k in range(NUM_BASES)], dim=1)
        for value, wanted in zip((of_maps, of_weight, of_bias), expected, strict=True):
            assert_close(value.double(), wanted, rtol=1e-4, atol=1e-4)

    def test_threads_do_not_matter(self, passes, kernel_set, channels):
        if kernel_set == 'simulated':
            pytest.skip('the order of sums in torch depends on the number of threads')
        x, gradient = maps(channels, 2)
        y, gate = integers(channels), torch.rand(NUM_BASES)
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((*passes.connect_gradient(gradient, x, gate, gate), passes.gradient_sums(x, y, True)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    'overrides',
    [
        dict(in_channels=3),
        dict(in_channels=8),
        dict(in_channels=64, groups=2),
        dict(in_channels=70, stride=(2, 1)),
        dict(in_channels=33, shares_weights=True, num_bases=1),
        dict(in_channels=3, padding_value=-1, padding=(2, 1)),
    ],
)
def test_convolve(passes, overrides):
    unit = random_unit(geometry(**overrides))
    x = passes.prepare(oracle.dyadic(2, 2 * unit.geometry.in_channels, 7, 6))
    latent = unit.weight * torch.rand(unit.weight.shape).add(0.5)
    out = passes.convolve(x, latent, unit.geometry)
    assert out.dtype == torch.int16
    assert torch.equal(out.int(), oracle.convolve(unit, torch.where(x >= 0, 1.0, -1.0)).int())


@pytest.mark.parametrize('shape', [(5, 3, 3, 3), (4, 8, 3, 3), (64, 64, 3, 3), (2, 70, 1, 1)])
def test_weight_signs(passes, shape):
    weight = torch.randn(shape)
    weight.view(-1)[:2] = torch.tensor([0.0, -0.0])
    for given in (weight, last(weight)):
        assert torch.equal(passes.weight_signs(given), torch.where(weight >= 0, 1.0, -1.0))


def test_sums_beyond_sixteen_bits_are_floats(passes):
    unit = random_unit(geometry(in_channels=3641, num_bases=1, kernel_size=(3, 3), padding=(1, 1)))
    x = passes.prepare(torch.ones(1, 3641, 2, 2))
    out = passes.convolve(x, torch.ones_like(unit.weight), unit.geometry)
    assert_close(out, torch.full_like(out, 32769.0), rtol=1e-5, atol=0)


class TestExactSums:
    """Sums of r and of r * r are exact, so a variance computed from them does not cancel."""

    @staticmethod
    def assert_exact(passes: Passes, y: Tensor, relu: bool) -> None:
        r = y.long().clamp(min=0) if relu else y.long()
        expected = torch.stack([r.sum((0, 2, 3)), r.square().sum((0, 2, 3))])
        assert torch.equal(passes.moments(y, relu), expected.double())

    @pytest.mark.parametrize('channels', CHANNELS)
    @pytest.mark.parametrize('relu', [False, True])
    def test_of_any_values(self, passes, channels, relu):
        self.assert_exact(passes, last(torch.randint(-32768, 32768, (2, channels, 41, 37)).short()), relu)

    @pytest.mark.parametrize('value', [-32768, -32767, -256, -1, 0, 255, 256, 32767])
    @pytest.mark.parametrize('pixels', [1, 31, 32, 33, 255, 256, 257, 5000])
    def test_of_one_value(self, passes, value, pixels):
        y = last(torch.full((1, 17, 1, pixels), value, dtype=torch.int16))
        for relu in (False, True):
            self.assert_exact(passes, y, relu)

    def test_variance_of_values_far_from_zero(self, passes):
        y = last((3001 + torch.randn(4, 16, 64, 64)).round().short())
        self.assert_exact(passes, y, False)
        mean, square = passes.moments(y, False) / (4 * 64 * 64)
        assert_close(square - mean.square(), y.double().var((0, 2, 3), correction=0), rtol=1e-8, atol=0)


class TestChoiceOfABackend:
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize('has_bfloat16', [False, True])
    def test_the_cpu_computes_in_single_precision(self, has_bfloat16, dtype, monkeypatch):
        """With bfloat16 in the processor, only the gradients of convolutions are in it."""
        if kernels.library() is None:
            pytest.skip('the kernels were not compiled')
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: has_bfloat16)
        x, weight = torch.ones(1, dtype=dtype), torch.ones(1)
        alone = choose_passes(x, weight, 'a conv')
        with torch.autocast('cpu', dtype=torch.bfloat16):
            under_autocast = choose_passes(x, weight, 'a conv')
        for passes, requested in ((alone, dtype), (under_autocast, torch.bfloat16)):
            assert isinstance(passes, KernelPasses)
            expected = torch.bfloat16 if has_bfloat16 and requested == torch.bfloat16 else torch.float32
            assert passes.dtype == expected

    def test_others_convolve_in_the_dtype_of_autocast(self, monkeypatch):
        monkeypatch.setattr(kernels, 'library', lambda: None)
        x = torch.ones(1)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert choose_passes(x, x, 'a conv').dtype == torch.bfloat16
            assert choose_passes(x.double(), x.double(), 'a conv').dtype == torch.float64  # autocast keeps float64
        assert choose_passes(x, x, 'a conv').dtype == torch.float32

    def test_a_dtype_without_kernels_is_refused(self):
        message = 'a conv under inputs of torch.float8_e4m3fn: it trains in torch.float16, torch.bfloat16, '
        with pytest.raises(ValueError, match=message):
            choose_passes(torch.ones(1).to(torch.float8_e4m3fn), torch.ones(1), 'a conv')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
class TestSumsOfHalfPrecision:
    """Products and sums over pixels are float32; the sums of these maps exceed the range of half precision."""

    def test_products_of_gradients_and_integers(self, dtype):
        gradient = torch.full((1, 1, 4, 4), 100.0, dtype=dtype)
        y = torch.full((1, 1, 4, 4), 1000.0, dtype=dtype)
        sums = TorchPasses(dtype).gradient_sums(gradient, y, relu=True)
        assert_close(sums, torch.tensor([[1600.0], [1.6e6]], dtype=torch.float64))

    def test_gates(self, dtype):
        x = torch.full((4, 2, 100, 100), 3.0, dtype=dtype)
        x[:, 1] = 1.0
        gate, scales = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.5])
        _, of_gate, of_scales = TorchPasses(dtype).connect_gradient(torch.full_like(x, 8.0), x, gate, scales)
        # The merged map m is 2, so g * (x - m) is 8 and -8 in 40,000 pixels. The sum of (1 - gate) * g over the
        # branches is 10.
        assert_close(of_gate, torch.tensor([320000.0, -320000.0]))
        assert_close(of_scales, torch.tensor([1.2e6, 4e5]))


def test_buffers_do_not_follow_the_default_dtype(passes):
    (x, gradient), y = maps(16, 2), integers(16)
    vectors_of = [torch.randn(NUM_BASES * 16, generator=torch.Generator().manual_seed(index)) for index in range(3)]
    found = []
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            branch = passes.affine_gradient(gradient, y, *vectors_of, NUM_BASES, True)(1, False)
            found.append((branch, passes.branch_signs(x, 1, NUM_BASES)))
        finally:
            torch.set_default_dtype(before)
    for value, expected in zip(*found, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


PADDED = [
    dict(padding=(1, 1)),
    dict(padding=(2, 1), kernel_size=(3, 5), stride=(2, 1)),
    dict(padding=None, dilations=(3,)),
    dict(padding=None, dilations=(9,)),  # every pixel is at the border
    dict(padding=(3, 0), kernel_size=(2, 4), stride=(1, 3), groups=2, in_channels=6, out_channels=4),
    dict(padding=(1, 1), in_channels=80),  # fewer pixels than channels
]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('overrides', PADDED, ids=str)
def test_sums_over_padding(passes, overrides, layout):
    """The reference sums are computed in torch, in double precision."""
    g = geometry(**dict(in_channels=3, out_channels=5, kernel_size=(3, 3), num_bases=1, dilations=(1,)) | overrides)
    gradient = torch.randn(2, g.out_channels, *g.output_size(6, 5)).contiguous(memory_format=layout)
    found = passes.sums_over_padding(g, 0, gradient, (6, 5))
    assert found.shape == (g.out_channels, 1, *g.kernel_size) and found.dtype == torch.float32
    assert_close(found, sums_over_padding(g, 0, gradient.double(), (6, 5)).float())


@pytest.mark.parametrize('padding_value', [-1, 0, 1])
@pytest.mark.parametrize('overrides', PADDED, ids=str)
def test_gradients_of_padded_signs(overrides, padding_value):
    """The reference is autograd through a padded copy."""
    options = dict(in_channels=3, out_channels=5, kernel_size=(3, 3), num_bases=1, dilations=(1,)) | overrides
    g = geometry(**options, padding_value=padding_value)
    signs = oracle.dyadic(2, g.in_channels, 6, 5).sign().add(0.5).sign().double().requires_grad_()
    weight = torch.randn(g.out_channels, g.in_channels // g.groups, *g.kernel_size).double().requires_grad_()
    out = convolve_signs(g, signs, weight)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(out, (signs, weight), upstream)
    found = convolution_gradients(g, 0, upstream, signs.detach(), weight.detach(), True, True)
    for value, wanted in zip(found, expected, strict=True):
        assert_close(value, wanted)


@pytest.mark.parametrize('size', [3, 12])  # fewer pixels than channels, which takes another code path, and more
def test_weight_gradients_of_half_maps_are_float32(size):
    g = geometry(in_channels=32, out_channels=4, kernel_size=(3, 3), num_bases=1, dilations=(1,), padding_value=1)
    signs = torch.randn(1, 32, size, size).sign().bfloat16()
    weight = torch.randn(4, 32, 3, 3).sign().bfloat16()
    gradient = torch.randn(1, 4, size, size).bfloat16()
    of_signs, of_weight = convolution_gradients(g, 0, gradient, signs, weight, True, True)
    assert (of_signs.dtype, of_weight.dtype) == (torch.bfloat16, torch.float32)
    padded = torch.nn.functional.pad(signs.float(), (1, 1, 1, 1), value=1.0)
    expected = torch.nn.grad.conv2d_weight(padded, weight.shape, gradient.float())
    assert_close(of_weight, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
