"""Chains, networks and half precision with Triton's kernels against plain autograd, on a GPU or in the interpreter; the
number of launches of a block; properties of the compiled kernels."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, distributed, nn

from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d
from mmgroupnet.models import BinaryFPN, GroupNetResNet
from mmgroupnet.ops import kernels
from mmgroupnet.ops.passes import choice
from tests.launches import count_launches
from tests.lean_comparison import (
    DECOMPOSITIONS,
    Run,
    assert_single_precision,
    block_of,
    call,
    outputs_and_gradients,
    randomise,
    relative,
    set_lean,
    small_network,
)
from tests.processes import noted_collectives, run_in_two_processes
from tests.strategies import seeds
from tests.test_layers.test_lean.test_chain import NETWORKS, chains, has_lone_weights, input_of, margin_of_signs
from tests.test_layers.test_lean.test_collectives import build, images

triton = pytest.importorskip('triton', reason='Triton is not installed')
ROOT = Path(__file__).resolve().parents[3]
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
# Allowed distance of gradients in single precision, relative to their norm, if no sign flips.
NETWORK = 1e-4 if DEVICE.type == 'cpu' else 1e-2


@pytest.fixture(autouse=True)
def runs_triton(monkeypatch):
    if DEVICE.type == 'cpu' and not triton.knobs.runtime.interpret:
        pytest.skip('without a GPU Triton needs TRITON_INTERPRET=1')
    monkeypatch.setenv(choice.ENVIRONMENT_VARIABLE, 'triton')


def assert_triton_ran(run, *arguments) -> object:
    """Calls a function and checks that it launches Triton kernels; returns its result."""
    found = {}
    launches = count_launches(lambda: found.update(out=run(*arguments)))
    assert any(name.endswith('_kernel') for name in launches)
    return found['out']


def input_with_margin(model: nn.Module, *shapes: tuple[int, ...], run: Run = call) -> list[Tensor]:
    """Inputs for which no sign gets a value close to zero, where rounding could flip it."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(shape, generator=generator) for shape in shapes]
        if margin_of_signs(model, *inputs, run=run) > 1e-5:
            return [x.to(DEVICE) for x in inputs]
    raise AssertionError('for each input some sign gets a value close to zero')


def assert_lean_is_plain(model: nn.Module, shapes: list[tuple[int, ...]], run: Run = call) -> None:
    inputs = input_with_margin(model, *shapes, run=run)
    lean, plain = (set_lean(copy.deepcopy(model), is_lean).to(DEVICE) for is_lean in (True, False))
    found = assert_triton_ran(outputs_and_gradients, lean, inputs, run)
    for name, value in outputs_and_gradients(plain, inputs, run).items():
        if value is not None:
            assert relative(found[name], value) <= NETWORK, (name, relative(found[name], value))


class TestChains:
    @settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(chains(), seeds())
    def test_single_precision(self, model, seed):
        self.check(model, seed)

    @pytest.mark.slow
    @settings(
        deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(chains(), seeds())
    def test_many_in_single_precision(self, model, seed):
        self.check(model, seed)

    @staticmethod
    def check(model: nn.Module, seed: int) -> None:
        model, x = model.float(), input_of(model, seed).float()
        assume(margin_of_signs(model, x) > 1e-4 and not has_lone_weights(model))
        assert_single_precision(model.to(DEVICE), x.to(DEVICE), 1e-5 if DEVICE.type == 'cpu' else 1e-2)


def network_of(**options) -> nn.Module:
    torch.manual_seed(0)
    defaults = dict(depth=18, num_bases=3, base_channels=8, stage_blocks=(1, 1), strides=(1, 2), out_indices=(0, 1))
    return randomise(GroupNetResNet(**dict(defaults, dilations=(1, 1)) | options)).train()


@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
def test_small_networks(decomposition):
    assert_lean_is_plain(network_of(decomposition=decomposition), [(1, 3, 24, 20)])


@pytest.mark.parametrize('num_bases', [1, 5])
def test_bases(num_bases):
    network = network_of(num_bases=num_bases, stage_blocks=(1,), strides=(1,), dilations=(1,), out_indices=(0,))
    assert_lean_is_plain(network, [(1, 3, 16, 12)])


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_whole_networks(name):
    torch.manual_seed(0)
    network = randomise(GroupNetResNet(**dict(depth=18, num_bases=3, base_channels=8) | NETWORKS[name])).train()
    # On smaller pictures the norms of the last stage get four pixels, and plain training has an error as large as the
    # bound.
    assert_lean_is_plain(network, [(2, 3, 64, 48)])


@pytest.mark.slow
def test_pyramid():
    torch.manual_seed(0)
    neck = randomise(BinaryFPN([8, 16, 32], 8, 5, num_bases=3, add_extra_convs='on_output')).train()
    shapes = [(2, 8, 17, 12), (2, 16, 9, 6), (2, 32, 5, 3)]
    assert_lean_is_plain(neck, shapes, lambda m, *maps: m(maps))


@pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
def test_one_conv(cls):
    torch.manual_seed(0)
    conv = cls(4, 6, 3, padding='same', num_bases=2)
    channels = 8 if cls is BinaryConv2d else 4
    assert_lean_is_plain(conv, [(2, channels, 7, 5)], lambda m, x: (m(x),))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    """The network has one block with norms in evaluation mode, so a sign that rounding flips affects few others."""
    network = small_network(stage_blocks=(1,), strides=(1,), norm_eval=True).to(DEVICE)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def gradients(is_lean: bool, half: torch.dtype | None, scale: float = 1.0) -> dict[str, Tensor]:
        model = set_lean(copy.deepcopy(network), is_lean)
        with torch.autocast(DEVICE.type, dtype=half, enabled=half is not None):
            out = model(x)[-1].float()
        loss = (out * torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)).mean()
        (loss * scale).backward()
        return {name: value.grad / scale for name, value in model.named_parameters()}

    exact = gradients(False, None)
    plain, lean = gradients(False, dtype, 256.0), assert_triton_ran(gradients, True, dtype, 256.0)
    for name, value in exact.items():
        if value.any():
            distances = [((found[name] - value).norm() / value.norm()).item() for found in (lean, plain)]
            assert distances[0] <= max(2 * distances[1], 0.02 if dtype == torch.float16 else 0.15), (name, distances)


class TestLaunches:
    """Launches in the forward and backward pass of a basic block with soft gates, including those that compute scales
    and gates."""

    @staticmethod
    def of_a_block(num_bases: int, run=call) -> tuple[int, int]:
        """The numbers of calls and of launches; the backward pass of a convolution is one call and two launches."""
        network = small_network(num_bases=num_bases).to(DEVICE)
        block, merge = block_of(network, 0), network.stages[0][0].merge
        x = torch.randn(2, 8 * num_bases, 8, 8, device=DEVICE).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        gradient = torch.randn_like(x)
        launches = count_launches(lambda: block(x, merge).backward(gradient))
        assert launches['convolution'] == 2 * num_bases
        assert launches['convolution_backward'] == 4 * num_bases
        assert not any('double' in name or name in ('item', '_local_scalar_dense') for name in launches)
        return sum(launches.values()) - 2 * num_bases, sum(launches.values())

    @pytest.mark.parametrize(('num_bases', 'calls', 'launches'), [(1, 38, 40), (5, 59, 69)])
    def test_of_a_block(self, num_bases, calls, launches):
        found = self.of_a_block(num_bases)
        assert found[0] <= calls, found
        assert found[1] <= launches, found

    def test_no_float64_and_no_waiting(self):
        """No tensor is float64, and no operation waits for the GPU."""
        from torch.utils._python_dispatch import TorchDispatchMode

        seen = set()

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
                out = function(*arguments, **keywords or {})
                name = function.overloadpacket.__name__
                is_double = isinstance(out, Tensor) and out.dtype == torch.float64
                if is_double or name in ('_local_scalar_dense', 'nonzero'):
                    seen.add(name)
                return out

        network = network_of(num_bases=2).to(DEVICE)
        with Watch():
            network(torch.randn(1, 3, 16, 12, device=DEVICE))[-1].sum().backward()
        assert not seen


class TestChoice:
    def test_wanted_and_there(self):
        passes = choice.choose_passes(torch.ones(1, device=DEVICE), torch.ones(1), 'a conv')
        assert type(passes).__name__ == 'TritonPasses'

    @pytest.mark.parametrize('x', [torch.ones(1).double(), torch.ones(0)], ids=['float64', 'empty'])
    def test_what_triton_does_not_take(self, x, monkeypatch):
        monkeypatch.setattr(kernels, 'library', lambda: None)
        assert type(choice.choose_passes(x, x, 'a conv')).__name__ == 'TorchPasses'

    def test_torch_is_the_default(self, monkeypatch):
        monkeypatch.setattr(kernels, 'library', lambda: None)
        for name in ('', 'torch'):
            monkeypatch.setenv(choice.ENVIRONMENT_VARIABLE, name)
            assert type(choice.choose_passes(torch.ones(1), torch.ones(1), 'a conv')).__name__ == 'TorchPasses'

    def test_another_name_is_refused(self, monkeypatch):
        monkeypatch.setenv(choice.ENVIRONMENT_VARIABLE, 'cuda')
        with pytest.raises(ValueError, match='MMGROUPNET_PASSES=cuda: give torch or triton'):
            choice.choose_passes(torch.ones(1), torch.ones(1), 'a conv')

    @pytest.mark.parametrize(
        ('capability', 'failure', 'message'),
        [
            ((7, 5), None, 'a GPU of compute capability 7.5 is older than 8.0'),
            ((8, 0), RuntimeError('ptxas: no\nmore'), r'its kernels fail on a GPU \(RuntimeError: ptxas: no\)'),
        ],
    )
    def test_a_failure_falls_back_once_and_is_said(self, capability, failure, message, monkeypatch):
        said, tried = [], []

        def compare(device: torch.device, dtype: torch.dtype) -> None:
            tried.append(dtype)
            raise failure

        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a GPU')
        monkeypatch.setattr(choice, 'print_log', lambda text, **options: said.append(text))
        monkeypatch.setattr('mmgroupnet.ops.passes.self_test.compare_with_torch', compare)
        monkeypatch.setattr(choice, 'without_autocast', lambda device: torch.no_grad())
        choice.triton_works.cache_clear()
        try:
            for _ in range(2):
                assert not choice.triton_works(torch.device('cuda', 0), torch.float32)
        finally:
            choice.triton_works.cache_clear()
        assert len(said) == 1
        assert re.search(message, said[0])
        assert len(tried) == (0 if failure is None else 1)

    def test_the_self_test_passes_here(self):
        from mmgroupnet.ops.passes.self_test import compare_with_torch

        compare_with_torch(DEVICE, torch.float32)

    def test_the_self_test_notices_other_numbers(self, monkeypatch):
        from mmgroupnet.ops.passes import self_test, triton_passes

        affine = triton_passes.TritonPasses.affine
        monkeypatch.setattr(triton_passes.TritonPasses, 'affine', lambda *arguments: affine(*arguments) * 1.1)
        with pytest.raises(AssertionError):
            self_test.compare_with_torch(DEVICE, torch.float32)


def compiled_kernels(path: Path, *arguments: str) -> list[dict]:
    """The results of benchmarks/triton_kernels.py, in a process without Triton's interpreter."""
    command = [sys.executable, str(ROOT / 'benchmarks/triton_kernels.py'), '--out', str(path), *arguments]
    environment = dict(os.environ, TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(path.parent / 'cache'))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())['kernels']


# Maximum number of registers per thread: with 128, a multiprocessor can hold 16 warps.
_REGISTERS = 128


def assert_compiled_well(rows: list[dict], capabilities: int) -> None:
    assert {row['kernel'] for row in rows} == {
        *('connect', 'connect_gradient', 'signs', 'sign_gradient', 'weight_signs', 'weight_gradient', 'moments'),
        *('statistics', 'affine', 'affine_gradient', 'gradient_sums', 'norm_gradient'),
    }
    for row in rows:
        assert len(row['compiled']) == capabilities
        for found in row['compiled'].values():
            assert found['spilled'] == 0, row
            assert found['registers'] <= _REGISTERS, row
            assert not found['has_double'], row
            # Maps are read in loads of 16 bytes.
            assert row['bytes_moved'] is None or found['widest_load'] == 16, row


def test_kernels_compile_without_a_gpu(tmp_path):
    assert_compiled_well(compiled_kernels(tmp_path / 'found.json', '--dtypes', 'float32', '--capabilities', '80'), 1)


@pytest.mark.slow
def test_kernels_compile_for_all_gpus_and_dtypes(tmp_path):
    assert_compiled_well(compiled_kernels(tmp_path / 'found.json'), 4)


def train_blocks(rank: int) -> list[tuple[list, list[Tensor]]]:
    """Collectives and gradients of one step of blocks with synchronised norms, for each pair of shares."""
    found = []
    for first in (1, 0):
        network = build('blocks', 'SyncBN').float()
        x = images()[0].float()[: first + 1]
        with noted_collectives() as collectives:
            (out,) = network(x[:first] if rank == 0 else x[first:])
            (out * torch.linspace(-1, 1, out[:1].numel()).view_as(out[:1])).sum().backward()
            for parameter in network.parameters():
                distributed.all_reduce(parameter.grad)
        found.append((list(map(str, collectives)), [parameter.grad for parameter in network.parameters()]))
    return found


@pytest.mark.slow
def test_synchronised_norms(tmp_path):
    """Two processes issue the same collectives and train like one process, even if one of them has no image."""
    first, second = run_in_two_processes(tmp_path, train_blocks)
    for size, mine, other in zip((2, 1), first, second, strict=True):
        assert mine[0] == other[0]
        network = build('blocks', 'BN').float()
        (out,) = network(images()[0].float()[:size])
        (out * torch.linspace(-1, 1, out[:1].numel()).view_as(out[:1])).sum().backward()
        for value, parameter in zip(mine[1], network.parameters(), strict=True):
            assert relative(value, parameter.grad) < 1e-4
