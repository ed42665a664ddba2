"""The passes in Triton against formulas in double precision: compiled on a GPU, otherwise in Triton's interpreter."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers.lean.surrogates import surrogate_of
from mmgroupnet.ops import UnitGeometry
from mmgroupnet.ops.passes import Running, UnitGradients
from mmgroupnet.quantizers import ClippedIdentitySign, ErrorDecaySign, PolynomialSign, SwishSign
from tests.test_ops.oracle import geometry

triton_passes = pytest.importorskip('mmgroupnet.ops.passes.triton_passes', reason='Triton is not installed')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# Images, channels of a branch, height, width and branches: one value, odd sizes, more channels than a tile.
SHAPES = [(1, 1, 1, 1, 1), (2, 7, 5, 3, 2), (1, 130, 3, 4, 3), (2, 16, 6, 7, 5)]
MAPS = (torch.float32, torch.float16, torch.bfloat16)
# Dtypes of sums: float16 if it is exact, else int16; float32 for merged bases.
SUMS = (torch.float16, torch.int16, torch.float32)
# Allowed distances of values that are rounded to a dtype.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Allowed distances of gradients of convolutions: a GPU multiplies float32 in TF32.
OF_CONVOLUTIONS = {**ROUNDING, torch.float32: 1e-5 if DEVICE == 'cpu' else 2e-3}


@pytest.fixture(autouse=True)
def runs_triton() -> Iterator[None]:
    import triton

    if DEVICE == 'cpu' and not triton.knobs.runtime.interpret:
        pytest.skip('without a GPU Triton needs TRITON_INTERPRET=1')
    yield


@pytest.fixture(params=MAPS, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def passes(dtype) -> 'triton_passes.TritonPasses':
    return triton_passes.TritonPasses(dtype)


def last(x: Tensor) -> Tensor:
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def maps(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> list[Tensor]:
    batch, channels, height, width, branches = shape
    return [last(torch.randn(batch, branches * channels, height, width).to(dtype)) for _ in range(count)]


def sums(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    batch, channels, height, width, branches = shape
    return last(torch.randint(-9, 10, (batch, branches * channels, height, width)).to(dtype))


def vectors(size: int, count: int) -> list[Tensor]:
    return [torch.rand(size, device=DEVICE) + 0.2 for _ in range(count)]


def per_channel(vector: Tensor) -> Tensor:
    return vector.double().view(-1, 1, 1)


def rectified(y: Tensor, relu: bool) -> Tensor:
    return y.double().clamp(min=0) if relu else y.double()


def assert_near(value: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares elements with a tolerance relative to the largest one."""
    assert_close(
        value.double(), expected.double(), rtol=tolerance, atol=tolerance * max(expected.abs().max().item(), 1e-3)
    )


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
class TestPassesOverSums:
    @pytest.mark.parametrize(
        ('y_dtype', 'has_residual'), [(torch.float16, True), (torch.int16, False), (torch.float32, True)], ids=str
    )
    def test_affine(self, passes, dtype, shape, relu, y_dtype, has_residual):
        y, (residual,) = sums(shape, y_dtype), maps(shape, dtype, 1)
        scale, shift = vectors(y.shape[1], 2)
        out = passes.affine(y, scale, shift, residual if has_residual else None, relu, dtype)
        expected = per_channel(scale) * rectified(y, relu) + per_channel(shift)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_near(out, expected + residual if has_residual else expected, ROUNDING[dtype])

    @pytest.mark.parametrize('y_dtype', SUMS, ids=str)
    def test_affine_gradient(self, passes, dtype, shape, relu, y_dtype):
        y, (gradient,), branches = sums(shape, y_dtype), maps(shape, dtype, 1), shape[-1]
        p, q, s = vectors(y.shape[1], 3)
        whole = per_channel(p) * gradient.double() + per_channel(q) * y.double() + per_channel(s)
        whole = whole * (y > 0) if relu else whole
        gradient_of = passes.affine_gradient(gradient, y, p, q, s, branches, relu)
        for k, wanted in enumerate(whole.chunk(branches, dim=1)):
            assert gradient_of(k, False).dtype == dtype
            assert_near(gradient_of(k, False), wanted, ROUNDING[dtype])

    def test_sums(self, passes, dtype, shape, relu):
        y, (gradient,) = sums(shape, torch.int16), maps(shape, dtype, 1)
        r = rectified(y, relu)
        expected = torch.stack([r.sum((0, 2, 3)), r.square().sum((0, 2, 3))])
        assert_close(passes.moments(y, relu), expected, rtol=1e-5, atol=1e-4)
        products = torch.stack([gradient.double(), gradient.double() * r]).sum((1, 3, 4))
        assert_close(passes.gradient_sums(gradient, y, relu), products, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('uses_batch', [False, True])
@pytest.mark.parametrize('has_affine', [False, True])
@pytest.mark.parametrize('shares_weights', [False, True])
@pytest.mark.parametrize('relu', [False, True])
def test_batch_norm(has_affine, shares_weights, relu, uses_batch):
    """Statistics, outputs, gradients and running statistics are those of autograd."""
    shape, passes = (2, 7, 11, 13, 3), triton_passes.TritonPasses(torch.float32)
    y, (gradient,) = sums(shape, torch.float16), maps(shape, torch.float32, 1)
    branches = shape[-1] if shares_weights else 1
    channels = y.shape[1] // branches
    (scale,) = vectors(channels, 1)
    norm = nn.BatchNorm2d(channels, affine=has_affine).to(DEVICE).train(uses_batch)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    reference = nn.BatchNorm2d(channels, affine=has_affine).to(DEVICE).double().train(uses_batch)
    reference.load_state_dict(norm.state_dict())
    given = y.double().requires_grad_()
    scaled = (given.relu() if relu else given) * per_channel(scale.repeat(branches))
    expected = torch.cat(reference(torch.cat(scaled.chunk(branches, dim=1))).chunk(branches), dim=1)
    expected.backward(gradient.double())

    running = Running(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum, uses_batch)
    mean, inverse, (factor, shift) = passes.norms.statistics(
        y, relu, branches, scale, norm.weight, norm.bias, running, norm.eps, uses_batch
    )
    out = passes.affine(y, factor, shift, None, relu, torch.float32)
    assert_near(out, expected.detach(), 1e-5)
    for name, buffer in reference.named_buffers():
        assert_close(norm.get_buffer(name).double(), buffer.double(), rtol=1e-5, atol=1e-6)
    of_weight, of_bias, (p, q, s) = passes.norms.gradients(
        gradient, y, relu, branches, (mean, inverse), scale, norm.weight, uses_batch
    )
    if has_affine:
        assert_near(of_weight, reference.weight.grad, 1e-5)
        assert_near(of_bias, reference.bias.grad, 1e-5)
    found = torch.cat(list(passes.affine_gradient(gradient, y, p, q, s, shape[-1], relu).maps), dim=1)
    assert_near(found, given.grad, 1e-5)


def test_floats_may_come_in_any_order():
    """The maps of a full-precision shortcut may be contiguous or channels_last."""
    shape, passes = (2, 7, 5, 3, 2), triton_passes.TritonPasses(torch.float32)
    y, (gradient,), (scale, shift) = sums(shape, torch.float32), maps(shape, torch.float32, 1), vectors(14, 2)
    found, expected = (
        [
            *passes.norms.statistics(y, False, 1, scale, None, None, None, 1e-5, True),
            *passes.norms.gradients(gradient, y, False, 1, (shift, scale), scale, None, True),
            passes.affine(y, scale, shift, None, False, torch.float32),
            passes.affine_gradient(gradient, y, scale, shift, scale, 2, False)(1),
            passes.moments(y, False),
            passes.gradient_sums(gradient, y, False),
        ]
        for y, gradient in ((y.contiguous(), gradient.contiguous()), (y, gradient))
    )
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize('padding_value', [-1, 0, 1])
def test_signs_made_on_the_way(passes, dtype, padding_value):
    """The passes can compute the signs for the next convolution together with the map; map and sums must not change."""
    unit = geometry(in_channels=7, out_channels=3, num_bases=3, padding=(2, 1), padding_value=padding_value)
    shape = (2, 7, 5, 6, 3)
    y, (residual,), (scale, shift) = sums(shape, torch.int16), maps(shape, dtype, 1), vectors(21, 2)
    y[0, 0], residual[0, 0], shift = 0, 0, shift - 0.7
    shift[0] = 0  # gives zeros, whose sign is +1
    gate, scales = vectors(3, 2)
    weight = weight_of(unit)
    for run in (
        lambda **options: passes.affine(y, scale, shift, residual, True, dtype, **options),
        lambda **options: passes.connect(residual, gate, scales, **options),
    ):
        plain, found = run(), run(following=unit)
        assert torch.equal(found, plain)
        assert passes._made is not None
        assert torch.equal(passes.convolve(found, weight, unit), passes.convolve(plain.clone(), weight, unit))
        assert passes._made is None


class TestStatistics:
    @staticmethod
    def statistics(y: Tensor, running: Running | None = None) -> tuple[Tensor, Tensor]:
        ones = torch.ones(y.shape[1], device=DEVICE)
        mean, inverse, _ = triton_passes.TritonPasses(torch.float32).norms.statistics(
            y, False, 1, ones, None, None, running, 1e-5, True
        )
        return mean, inverse

    @pytest.mark.parametrize('channels', [1, 15, 64, 65])
    @pytest.mark.parametrize('pixels', [2, 31, 32, 33, 700])
    def test_any_number_of_pixels(self, channels, pixels):
        y = last(torch.randint(-300, 301, (1, channels, 1, pixels)).short())
        mean, inverse = self.statistics(y)
        variance, expected = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert_close(mean.double(), expected, rtol=1e-5, atol=1e-4)
        assert_close(inverse.double(), (variance + 1e-5).rsqrt(), rtol=1e-5, atol=0)

    def test_more_parts_than_tiles_of_parts(self, monkeypatch):
        monkeypatch.setattr(triton_passes.triton_launch, 'PROGRAMS', 20)
        y = last(torch.randint(-9, 10, (1, 3, 37, 41)).short())
        mean, inverse = self.statistics(y)  # 48 tiles, divided among 20 programs
        variance, expected = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert_close(mean.double(), expected, rtol=1e-5, atol=1e-5)
        assert_close(inverse.double(), (variance + 1e-5).rsqrt(), rtol=1e-5, atol=0)

    @pytest.mark.parametrize('centre', [3001, -32000])
    def test_values_far_from_zero_do_not_cancel(self, centre):
        y = last((centre + torch.randn(2, 5, 20, 20)).round().short())
        mean, inverse = self.statistics(y)
        variance, expected = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert_close(mean.double(), expected, rtol=1e-6, atol=0)
        assert_close(inverse.double(), (variance + 1e-5).rsqrt(), rtol=1e-3, atol=0)

    def test_cumulative_running_statistics(self):
        norm, reference = (nn.BatchNorm2d(6, momentum=None).to(DEVICE) for _ in range(2))
        for _ in range(3):
            y = last(torch.randint(-9, 10, (2, 6, 4, 5)).short())
            self.statistics(y, Running(norm.running_mean, norm.running_var, norm.num_batches_tracked, None, True))
            reference(y.float())
        for name, buffer in reference.named_buffers():
            assert_close(norm.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_connect_and_its_gradient(passes, dtype, shape):
    x, gradient = maps(shape, dtype, 2)
    gate, scales = vectors(shape[-1], 2)
    leaves = [value.double().requires_grad_() for value in (x, gate, scales)]
    branches = leaves[0].chunk(shape[-1], dim=1)
    merged = sum(scale * branch for scale, branch in zip(leaves[2], branches, strict=True))
    out = torch.cat([merged + c * (b - merged) for c, b in zip(leaves[1], branches, strict=True)], dim=1)
    assert_near(passes.connect(x, gate, scales), out.detach(), ROUNDING[dtype])
    expected = torch.autograd.grad(out, leaves, gradient.double())
    of_x, of_gate, of_scales = passes.connect_gradient(gradient, x, gate, scales)
    assert_near(of_x, expected[0], ROUNDING[dtype])
    for value, wanted in ((of_gate, expected[1]), (of_scales, expected[2])):
        assert value.dtype == torch.float32
        assert_close(value.double(), wanted, rtol=1e-4, atol=1e-3)
    one = torch.ones(1, device=DEVICE).mul_(0.3).expand(shape[-1])  # a gate that branches share
    assert torch.equal(passes.connect(x, one, scales), passes.connect(x, one.contiguous(), scales))


GEOMETRIES = {
    'one pixel at a time': dict(in_channels=1, out_channels=1, num_bases=1, kernel_size=(1, 1), padding=(0, 0)),
    'odd channels': dict(in_channels=7, out_channels=3, num_bases=3),
    'zeros around': dict(padding_value=0),
    'minus ones around': dict(padding_value=-1, padding=(2, 1)),
    'strides': dict(stride=(2, 1), num_bases=5),
    'groups': dict(groups=2),
    'wide kernel': dict(kernel_size=(3, 5), padding=(1, 2), in_channels=3),
    'dilations': dict(padding=None, dilations=(1, 3, 3), num_bases=3, in_channels=8),
    'shared': dict(shares_weights=True, num_bases=1),
    'shared, strided': dict(shares_weights=True, num_bases=1, kernel_size=(1, 1), padding=(0, 0), stride=(2, 2)),
    'more channels than a tile': dict(in_channels=130, out_channels=2, num_bases=2),
}


def unit_of(name: str) -> tuple[UnitGeometry, int]:
    """A geometry and the number of branches of its input."""
    unit = geometry(**GEOMETRIES[name])
    return unit, 3 if unit.shares_weights else unit.num_bases


def convolved(unit: UnitGeometry, branches: int, signs: Tensor, weight: Tensor) -> Tensor:
    """The convolutions of signs, branch by branch with padded copies, in the dtype of the arguments."""
    outs = []
    for k, part in enumerate(signs.chunk(branches, dim=1)):
        at = 0 if unit.shares_weights else k
        rows, columns = unit.pad_of(at)
        padded = F.pad(part, (columns, columns, rows, rows), value=float(unit.padding_value))
        rows_of = weight if unit.shares_weights else weight.chunk(branches)[k]
        outs.append(F.conv2d(padded, rows_of, None, unit.stride, 0, unit.dilations[at], unit.groups))
    return torch.cat(outs, dim=1)


def signs_of(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).double()


def weight_of(unit: UnitGeometry) -> Tensor:
    weight = torch.randn(unit.weight_rows, unit.in_channels // unit.groups, *unit.kernel_size, device=DEVICE)
    weight.view(-1)[0] = -0.0
    return weight


@pytest.mark.parametrize('name', GEOMETRIES)
def test_convolve(name):
    unit, branches = unit_of(name)
    passes = triton_passes.TritonPasses(torch.float32)
    (x,) = maps((2, unit.in_channels, 6, 5, branches), torch.float32, 1)
    x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    weight = weight_of(unit)
    out = passes.convolve(x, weight, unit)
    assert torch.equal(passes.convolve(x, weight.contiguous(memory_format=torch.channels_last), unit), out)
    assert out.dtype == torch.float16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out.double(), convolved(unit, branches, signs_of(x), signs_of(weight)))


@pytest.mark.parametrize(
    ('channels', 'kernel', 'padding_value', 'expected'),
    [
        (2048, 1, 0, torch.float16),
        (2049, 1, 1, torch.int16),  # an odd number of terms
        (4096, 1, 0, torch.float16),  # the number of terms is always even, and so are the sums
        (454, 3, 1, torch.float16),  # 4086 terms
        (454, 3, 0, torch.int16),  # at the border the number of terms may be odd
        (4098, 1, 1, torch.int16),
    ],
)
def test_sums_are_exact_in_whichever_type(channels, kernel, padding_value, expected):
    """The sums are the largest possible ones, or close to them: at most a few terms differ."""
    unit = geometry(
        in_channels=channels,
        out_channels=3,
        num_bases=1,
        kernel_size=(kernel, kernel),
        padding=(kernel // 2,) * 2,
        padding_value=padding_value,
    )
    x, weight = torch.ones(1, channels, 3, 3, device=DEVICE), torch.ones(3, channels, kernel, kernel, device=DEVICE)
    weight[1, 0] = -1
    weight[2, 2] = -1
    out = triton_passes.TritonPasses(torch.float32).convolve(last(x), weight, unit)
    assert out.dtype == expected
    assert torch.equal(out.double(), convolved(unit, 1, x.double(), weight.double()))


SURROGATES: dict[str, Callable[[], nn.Module]] = {
    'polynomial': PolynomialSign,
    'clipped identity': ClippedIdentitySign,
    'swish': lambda: SwishSign(3.0),
    'error decay': lambda: ErrorDecaySign(0.5, 4.0),
}


def gradients(unit: UnitGeometry, branches: int, dtype: torch.dtype, surrogate, **options) -> tuple[Tensor, ...]:
    """Gradients of the input and of the latent weights: two from the passes, then two from autograd in double
    precision."""
    passes = triton_passes.TritonPasses(dtype)
    x, residual = maps((2, unit.in_channels, 6, 5, branches), dtype, 2)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, 1.0])
    weight = weight_of(unit)
    (scale,) = vectors(unit.weight_rows, 1)
    signs, weight_signs = (signs_of(value).requires_grad_() for value in (x, weight))
    out = convolved(unit, branches, signs, weight_signs)
    upstream = last(torch.randn(out.shape).to(dtype))
    of_signs, of_weight = torch.autograd.grad(out, (signs, weight_signs), upstream.double())
    slope = ((2 - 2 * x.double().abs()).clamp(min=0)) if surrogate is None else surrogate(x.double())
    found = passes.unit_gradients(
        UnitGradients(
            geometry=unit,
            branches=branches,
            shares_weights=unit.shares_weights,
            gradient_of=lambda k, reuse: upstream.chunk(branches, dim=1)[k],
            x=x,
            weight=weight,
            scale=scale,
            residual=residual,
            surrogate=lambda k: surrogate,
            needs_x=True,
            needs_weight=True,
        )._replace(**options)
    )
    return (*found, slope * of_signs + residual.double(), of_weight / scale.double().view(-1, 1, 1, 1))


@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_of_convolutions(name, dtype):
    unit, branches = unit_of(name)
    of_x, of_weight, wanted_x, wanted_weight = gradients(unit, branches, dtype, None)
    assert (of_x.dtype, of_weight.dtype) == (dtype, torch.float32)
    assert_near(of_x, wanted_x, 2 * OF_CONVOLUTIONS[dtype])
    assert_near(of_weight, wanted_weight, 2 * OF_CONVOLUTIONS[dtype])


@pytest.mark.parametrize('name', [*SURROGATES, 'unknown'])
@pytest.mark.parametrize('geometry_name', ['odd channels', 'dilations', 'zeros around'])
def test_surrogate_gradients(name, geometry_name):
    surrogate = torch.cos if name == 'unknown' else surrogate_of(SURROGATES[name]())
    assert (surrogate is None) == (name == 'polynomial')
    of_x, _, wanted, _ = gradients(*unit_of(geometry_name), torch.float32, surrogate)
    assert_near(of_x, wanted, OF_CONVOLUTIONS[torch.float32])


def test_not_a_number_stays_one():
    """ReLUs and surrogate gradients keep NaN."""
    y = last(torch.tensor([[1.0, float('nan'), -1.0]]).view(1, 3, 1, 1))
    passes, ones = triton_passes.TritonPasses(torch.float32), torch.ones(3, device=DEVICE)
    out = passes.affine(y, ones, ones, None, True, torch.float32)
    assert out.flatten().isnan().tolist() == [False, True, False]
    unit = geometry(in_channels=1, out_channels=1, num_bases=1, kernel_size=(1, 1), padding=(0, 0))
    x = last(torch.full((1, 1, 2, 2), float('nan')))
    given = dict(x=x, residual=None, gradient_of=lambda k, reuse: torch.ones_like(x), needs_weight=False)
    for make in (PolynomialSign, lambda: SwishSign(3.0), lambda: ErrorDecaySign(0.5, 4.0)):
        of_x, *_ = gradients(unit, 1, torch.float32, surrogate_of(make()), **given)
        assert of_x.isnan().all()


def test_formulas_of_surrogates_far_from_zero():
    unit = geometry(in_channels=1, out_channels=1, num_bases=1, kernel_size=(1, 1), padding=(0, 0))
    x = last(torch.tensor([-1e30, -300.0, -20.0, -1.0, 1.0, 1.0001, 20.0, 300.0, 1e30]).view(1, 1, 1, 9))
    given = dict(x=x, gradient_of=lambda k, reuse: torch.ones_like(x), weight=torch.ones(1, 1, 1, 1, device=DEVICE))
    for name, make in SURROGATES.items():
        surrogate = surrogate_of(make())
        of_x, *_ = gradients(unit, 1, torch.float32, surrogate, residual=None, **given)
        expected = (2 - 2 * x.abs()).clamp(min=0) if surrogate is None else surrogate(x.double())
        assert_close(of_x.double(), expected.double(), rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


def test_a_surrogate_of_its_own_has_no_formula():
    class Changed(SwishSign):
        def surrogate_gradient(self, x: Tensor) -> Tensor:
            return torch.cos(x)

    changed = SwishSign()
    changed.surrogate_gradient = torch.sin
    assert surrogate_of(changed) is torch.sin
    assert surrogate_of(Changed())(torch.zeros(1)) == 1


@pytest.mark.parametrize('needs', [(True, False), (False, True)])
@pytest.mark.parametrize('name', ['odd channels', 'shared'])
def test_gradients_that_are_not_needed(name, needs):
    needs_x, needs_weight = needs
    found = gradients(*unit_of(name), torch.float32, None, needs_x=needs_x, needs_weight=needs_weight)
    assert [value is not None for value in found[:2]] == [needs_x, needs_weight]


def test_sums_repeat():
    """Sums do not depend on the order in which a GPU runs programs, since no program adds to the result of another."""
    shape = (2, 33, 9, 8, 3)
    (x, gradient), y = maps(shape, torch.float32, 2), sums(shape, torch.float16)
    gate, scales = vectors(3, 2)
    passes = triton_passes.TritonPasses(torch.float32)
    found = [
        (*passes.connect_gradient(gradient, x, gate, scales), passes.gradient_sums(gradient, y, True)) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('branches', range(1, 6))
@pytest.mark.parametrize('channels', [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 130])
def test_every_number_of_channels(channels, branches, dtype):
    shape = (1, channels, 5, 7, branches)
    over_sums = TestPassesOverSums()
    passes = triton_passes.TritonPasses(dtype)
    for relu in (False, True):
        over_sums.test_affine(passes, dtype, shape, relu, torch.float16, True)
        over_sums.test_affine_gradient(passes, dtype, shape, relu, torch.float16)
        over_sums.test_sums(passes, dtype, shape, relu)
    test_connect_and_its_gradient(passes, dtype, shape)
    unit = geometry(in_channels=channels, out_channels=3, num_bases=branches)
    of_x, of_weight, wanted_x, wanted_weight = gradients(unit, branches, dtype, None)
    assert_near(of_x, wanted_x, 2 * OF_CONVOLUTIONS[dtype])
    assert_near(of_weight, wanted_weight, 2 * OF_CONVOLUTIONS[dtype])
