"""The batch norm of lean training against torch's, over a grid of constructor options and in two processes."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close

from mmgroupnet.layers.lean.batch_norm import AffineOfNorm, BatchNorm
from mmgroupnet.ops import kernels
from mmgroupnet.ops.passes import KernelPasses, TorchPasses
from tests.processes import noted_collectives, run_in_two_processes

CHANNELS = 3
PASSES = TorchPasses(torch.float64)
needs_kernels = pytest.mark.skipif(kernels.library() is None, reason='the kernels were not compiled')
# All constructor options that change the computation of a norm.
OPTIONS = [
    dict(affine=affine, track_running_stats=tracked, momentum=momentum, eps=eps) | bias
    for affine, tracked, momentum, eps in itertools.product((True, False), (True, False), (0.1, 0.7, None), (1e-5, 0.1))
    for bias in ({}, dict(bias=False))
    if affine or not bias
]


def identity(options: dict) -> str:
    return ' '.join(f'{name}={value}' for name, value in options.items())


def build(kind: type[nn.Module], seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    norm = kind(CHANNELS, **options).double()
    with torch.no_grad():
        for value in (*norm.parameters(), *(buffer for buffer in norm.buffers() if buffer.is_floating_point())):
            value.copy_(torch.rand_like(value) + 0.5)
    return norm


def integers(batch: int, branches: int = 1, size: tuple[int, int] = (4, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(-9, 10, (batch, branches * CHANNELS, *size), generator=generator, dtype=torch.int16)


def upstream(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def scales() -> Tensor:
    return torch.tensor([0.5, 0.01, 3.0], dtype=torch.float64)


def lean(norm: nn.Module, y: Tensor, gradient: Tensor, relu: bool, branches: int = 1) -> list[Tensor | None]:
    """The output and the gradients of ``scale * y``, weight and bias, from lean training."""
    unit, affine, scale = BatchNorm(norm, branches), AffineOfNorm(norm.weight, norm.bias), scales()
    moments = PASSES.moments(y, relu) if unit.uses_batch else None
    statistics = unit.statistics(norm, moments, y[:, 0].numel(), scale)
    out = PASSES.affine(y, *unit.scale_and_shift(affine, statistics, scale), None, relu, torch.float64)
    of_norm, vectors = unit.backward(affine, PASSES.gradient_sums(gradient, y, relu), statistics, scale)
    branch = PASSES.affine_gradient(gradient, y, *vectors, 1, relu)
    found = [gradient if value is not None else None for value, gradient in zip(affine, of_norm, strict=True)]
    return [out, branch(0, False), *found]


def reference(norm: nn.Module, y: Tensor, gradient: Tensor, relu: bool, branches: int = 1) -> list[Tensor | None]:
    """The same values from torch; branches that share the norm are its batch."""
    leaf = (torch.cat(y.chunk(branches, dim=1)) * scales().view(-1, 1, 1)).requires_grad_()
    out = norm(leaf.relu() if relu else leaf)
    out.backward(torch.cat(gradient.chunk(branches, dim=1)))
    folded = [torch.cat(value.detach().chunk(branches), dim=1) for value in (out, leaf.grad)]
    return [*folded, *(None if value is None else value.grad for value in (norm.weight, norm.bias))]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for value, wanted in zip(found, expected, strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            assert_close(value, wanted, rtol=1e-9, atol=1e-9)


def assert_same_buffers(norm: nn.Module, other: nn.Module) -> None:
    for (name, buffer), wanted in zip(norm.named_buffers(), other.buffers(), strict=True):
        assert_close(buffer, wanted, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('options', OPTIONS, ids=identity)
class TestGrid:
    @pytest.mark.parametrize('relu', [True, False])
    @pytest.mark.parametrize('training', [True, False])
    def test_as_torch(self, options, training, relu):
        norm, other = (build(nn.BatchNorm2d, **options).train(training) for _ in range(2))
        for batch in (2, 3):  # the second one starts from changed running statistics
            y = integers(batch)
            other.zero_grad()
            assert_same(lean(norm, y, upstream(y), relu), reference(other, y, upstream(y), relu))
            assert_same_buffers(norm, other)

    def test_shared_by_branches(self, options):
        norm, other = (build(nn.BatchNorm2d, **options) for _ in range(2))
        y = integers(2, branches=3)
        assert_same(lean(norm, y, upstream(y), False, 3), reference(other, y, upstream(y), False, 3))
        assert_same_buffers(norm, other)

    def test_empty_batch_moves_nothing(self, options):
        norm = build(nn.BatchNorm2d, **options)
        other = copy.deepcopy(norm)
        y = integers(0)
        out, gradient, *of_norm = lean(norm, y, upstream(y), True)
        assert out.shape == gradient.shape == y.shape
        assert all(value is None or not value.any() for value in of_norm)
        other(y.double())
        assert_same_buffers(norm, other)
        for name in ('running_mean', 'running_var'):
            buffer = getattr(norm, name)
            assert buffer is None or buffer.isfinite().all()


@pytest.mark.parametrize('options', [{}, dict(track_running_stats=False)], ids=identity)
def test_one_value_per_channel_is_refused_as_by_torch(options):
    y = integers(1, size=(1, 1))
    norm = build(nn.BatchNorm2d, **options).train(not options)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        norm(y.double())
    message = r'one value per channel: BatchNorm2d\(3\) takes the statistics of more than one, over all images'
    with pytest.raises(ValueError, match=message):
        lean(norm, y, upstream(y), True)


@needs_kernels
@pytest.mark.parametrize('options', OPTIONS, ids=identity)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(('branches', 'relu'), [(1, True), (3, False)])
def test_arithmetic_of_the_kernels(options, training, branches, relu):
    """The kernels compute a norm in one call. Sums and double precision arithmetic are the same as in torch."""
    passes = KernelPasses()
    norm, other = (build(nn.BatchNorm2d, **options).float().train(training) for _ in range(2))
    y = integers(3, branches).contiguous(memory_format=torch.channels_last)
    gradient, scale, pixels = upstream(y).float(), scales().float(), y[:, 0].numel()
    affine = AffineOfNorm(norm.weight, norm.bias)
    whole, plain = BatchNorm(norm, branches, passes.norms), BatchNorm(other, branches)
    for _ in range(2):  # the second time starts from changed running statistics
        found = whole.statistics_of(norm, y, relu, affine, scale)
        expected = plain.statistics(other, passes.moments(y, relu) if plain.uses_batch else None, pixels, scale)
        assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-12)
        vectors = [value.float() for value in plain.scale_and_shift(affine, expected, scale)]
        assert_close(list(found.vectors), vectors, rtol=1e-6, atol=1e-6)
        assert_same_buffers(norm, other)
    of_weight, of_bias, of_y = passes.norms.gradients(
        gradient, y, relu, branches, found[:2], scale, norm.weight, whole.uses_batch
    )
    of_norm, factors = plain.backward(affine, passes.gradient_sums(gradient, y, relu), expected, scale)
    assert_close([of_weight, of_bias], [value.float() for value in of_norm], rtol=1e-6, atol=1e-6)
    factors = [(factor * scale.double().repeat(branches)).float() for factor in factors]
    assert_close(list(of_y), factors, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_the_kernels_move_running_statistics_of_another_dtype():
    norm, other = build(nn.BatchNorm2d), build(nn.BatchNorm2d)
    y = integers(3).contiguous(memory_format=torch.channels_last)
    unit = BatchNorm(norm, 1, KernelPasses().norms)
    unit.statistics_of(norm, y, True, AffineOfNorm(norm.weight, norm.bias), scales())
    other(y.double().relu() * scales().view(-1, 1, 1))
    for name, buffer in norm.named_buffers():
        assert_close(buffer, other.get_buffer(name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('mean', 'spread'), [(3001, 1), (1001, 1), (32766, 1)])
def test_variance_does_not_cancel(mean, spread):
    """The sums of integers are exact, and computed relative to an integer near their mean."""
    y = (mean + torch.randint(-spread, spread + 1, (4, CHANNELS, 64, 64))).to(torch.int16)
    norm = build(nn.BatchNorm2d, momentum=1.0)
    unit = BatchNorm(norm, 1)
    ones = torch.ones(CHANNELS, dtype=torch.float64)
    statistics = unit.statistics(norm, PASSES.moments(y, True), y[:, 0].numel(), ones)
    assert_close(statistics.mean, y.double().mean((0, 2, 3)), rtol=1e-14, atol=0)
    assert_close(norm.running_var, y.double().var((0, 2, 3)), rtol=1e-12, atol=0)


def test_statistics_of_floats_do_not_cancel():
    """A full-precision shortcut gives float32 maps; the sum of their squares would lose the deviation."""
    y = 1000 + torch.randn(4, CHANNELS, 64, 64)
    norm = build(nn.BatchNorm2d, momentum=1.0)
    unit = BatchNorm(norm, 1)
    moments = TorchPasses(torch.float32).moments(y, False)
    unit.statistics(norm, moments, y[:, 0].numel(), torch.ones(CHANNELS))
    assert_close(norm.running_var, y.double().var((0, 2, 3)), rtol=1e-4, atol=0)


# Numbers of images in the two processes: equal, different, none in one process, none in both.
SHARES = {'alike': (2, 2), 'unlike': (1, 3), 'empty': (0, 3), 'all empty': (0, 0)}


# Options of the norms in two processes.
SHARED_OPTIONS = [{}, dict(momentum=None, affine=False), dict(track_running_stats=False)]


def run_shares(rank: int) -> dict[str, dict[str, list]]:
    return {identity(options): run_share(rank, options) for options in SHARED_OPTIONS}


def run_share(rank: int, options: dict) -> dict[str, list]:
    found = {}
    for name, shares in SHARES.items():
        first = sum(shares[:rank])
        part = slice(first, first + shares[rank])
        y = integers(sum(shares))
        norm = build(nn.SyncBatchNorm, **options)
        with noted_collectives() as collectives:
            values = lean(norm, y[part], upstream(y)[part], True)
        found[name] = [[str(each) for each in collectives], values, dict(norm.named_buffers())]
    norm = build(nn.SyncBatchNorm, **options)
    pixel = integers(1 - rank, size=(1, 1))  # one value per channel in one process, none in the other
    try:
        lean(norm, pixel, upstream(pixel), True)
        found['one pixel'] = 'taken'
    except ValueError as error:
        found['one pixel'] = str(error)
    both = integers(2, size=(1, 1))  # one value per channel in each process
    found['a pixel each'] = lean(norm, both[rank : rank + 1], upstream(both)[rank : rank + 1], True)
    found['evaluated'] = []
    with noted_collectives() as collectives:
        norm = build(nn.SyncBatchNorm, **options).eval()
        lean(norm, both, upstream(both), True)
    found['evaluated'] = [str(each) for each in collectives]
    return found


@pytest.fixture(scope='module')
def shares(tmp_path_factory) -> list[dict[str, dict[str, list]]]:
    """The results of two processes for all options; a single start, since that takes seconds."""
    return run_in_two_processes(tmp_path_factory.mktemp('shares'), run_shares)


@pytest.mark.parametrize('options', SHARED_OPTIONS, ids=identity)
def test_two_processes_have_the_statistics_of_the_whole_batch(shares, options):
    ranks = [each[identity(options)] for each in shares]
    for name, images in SHARES.items():
        y = integers(sum(images))
        norm = build(nn.BatchNorm2d, **options)
        expected = lean(norm, y, upstream(y), True)
        if sum(images):
            assert_same(expected, reference(build(nn.BatchNorm2d, **options), y, upstream(y), True))
        (first, *of_first), (second, *of_second) = (rank[name] for rank in ranks)
        assert first == second and len(first) == 2
        maps = [torch.cat(pair) for pair in zip(of_first[0][:2], of_second[0][:2], strict=True)]
        of_norm = [None if a is None else a + b for a, b in zip(of_first[0][2:], of_second[0][2:], strict=True)]
        assert_same([*maps, *of_norm], expected)
        for buffers in (of_first[1], of_second[1]):
            for key, value in norm.named_buffers():
                assert_close(buffers[key], value, rtol=1e-9, atol=1e-12)
    y = integers(2, size=(1, 1))
    expected = lean(build(nn.BatchNorm2d, **options), y, upstream(y), True)
    pairs = zip(*(rank['a pixel each'][:2] for rank in ranks), strict=True)
    assert_same([torch.cat(pair) for pair in pairs], expected[:2])
    message = 'one value per channel: SyncBatchNorm(3) takes the statistics of more than one, over all images'
    assert all(rank['one pixel'].startswith(message) for rank in ranks)
    assert [rank['evaluated'] for rank in ranks] == [[], []]


def test_one_process_alone_reduces_nothing(monkeypatch):
    monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(distributed, 'get_world_size', lambda group: 1)
    norm, y = build(nn.SyncBatchNorm), integers(2)
    with noted_collectives() as collectives:
        lean(norm, y, upstream(y), True)
    assert collectives == []


def test_without_a_counter_of_batches():
    norm, other = build(nn.BatchNorm2d), build(nn.BatchNorm2d)
    norm.num_batches_tracked = other.num_batches_tracked = None
    y = integers(2)
    assert_same(lean(norm, y, upstream(y), True), reference(other, y, upstream(y), True))
    assert_same_buffers(norm, other)
