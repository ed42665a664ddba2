"""Training on a GPU with both backends: ``make test-gpu``. Skipped if torch sees no GPU."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmgroupnet.ops import UnitGeometry
from mmgroupnet.ops.passes import TorchPasses, choice
from tests.lean_comparison import DECOMPOSITIONS, set_lean, small_network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU here')]

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ('torch', 'triton')


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch) -> str:
    """Selects the backend of lean training. If it is Triton, its kernels must work on this GPU."""
    monkeypatch.setenv(choice.ENVIRONMENT_VARIABLE, request.param)
    if request.param == 'triton':
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert choice.triton_works(torch.device('cuda', 0), dtype)
    return request.param


@pytest.fixture
def without_tf32(monkeypatch) -> Iterator[None]:
    """Float32 convolutions are computed in float32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 48, generator=torch.Generator().manual_seed(0)).cuda()


def gradients(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None, scale: float = 1.0) -> dict[str, Tensor]:
    """Gradients of a loss that is multiplied by ``scale``, as by a GradScaler, divided by ``scale`` again."""
    model = copy.deepcopy(model)
    with torch.autocast('cuda', dtype=dtype, enabled=dtype is not None):
        out = model(x)[-1].float()
    loss = (out * torch.linspace(-1, 1, out.numel(), device='cuda').view_as(out)).mean()
    (loss * scale).backward()
    return {name: value.grad / scale for name, value in model.named_parameters()}


def distance(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).norm() / expected.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
def test_gradients_are_those_of_plain_autograd(decomposition, backend, without_tf32):
    """The network has one block with norms in evaluation mode, so a sign that rounding flips affects few others."""
    options = dict(decomposition=decomposition, stage_blocks=(1,), strides=(1,), base_channels=32, norm_eval=True)
    network = small_network(**options).cuda()
    found, expected = (gradients(set_lean(network, is_lean), images()) for is_lean in (True, False))
    for name, value in expected.items():
        if value.any():
            assert distance(found[name], value) < 1e-3, name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('scale', [1.0, 2.0**16])
def test_autocast(dtype, scale, backend):
    network = small_network(stage_blocks=(1,), strides=(1,), base_channels=32, norm_eval=True).cuda()
    x = images()
    exact = gradients(set_lean(network, False), x)
    plain, lean = (gradients(set_lean(network, is_lean), x, dtype, scale) for is_lean in (False, True))
    compared = [name for name, value in exact.items() if value.any() and plain[name].isfinite().all()]
    assert compared
    for name in compared:
        allowed = max(2 * distance(plain[name], exact[name]), 0.02 if dtype == torch.float16 else 0.15)
        assert distance(lean[name], exact[name]) <= allowed, name


@pytest.mark.parametrize('kernel', [1, 3])
@pytest.mark.parametrize('channels', [64, 256, 454, 512])
def test_convolutions_of_signs_are_exact(channels, kernel):
    """They are exact with every algorithm that cuDNN selects. Most terms are equal, so the sums are almost as large as
    possible."""
    triton_passes = pytest.importorskip('mmgroupnet.ops.passes.triton_passes', reason='Triton is not installed')
    pad = kernel // 2
    unit = UnitGeometry(2, channels, 32, 1, (kernel, kernel), (1, 1), (pad, pad), 1, (1, 1))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 2 * channels, 14, 14, generator=generator) - 0.03).cuda()
    weight = (torch.rand(64, channels, kernel, kernel, generator=generator) - 0.03).cuda()
    passes = triton_passes.TritonPasses(torch.float32)
    found = passes.convolve(passes.prepare(x), weight, unit)
    expected = TorchPasses(torch.float64).convolve(x.cpu().double(), weight.cpu().double(), unit)
    assert torch.equal(found.cpu().double(), expected.double())


def test_channels_last_is_the_same(backend, without_tf32):
    network = small_network(stage_blocks=(1,), strides=(1,), norm_eval=True).cuda()
    first = gradients(network, images())
    second = gradients(
        network.to(memory_format=torch.channels_last), images().contiguous(memory_format=torch.channels_last)
    )
    for name, value in first.items():
        assert distance(second[name], value) < 1e-3, name


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_with_a_grad_scaler_and_an_average(backend, with_cp):
    """The loss falls, the scaler skips few steps, and the average follows the weights."""
    network = small_network(with_cp=with_cp).cuda().to(memory_format=torch.channels_last)
    average = ExponentialMovingAverage(network, momentum=0.1)
    optimizer, scaler = torch.optim.Adam(network.parameters(), lr=2e-3), torch.amp.GradScaler('cuda')
    x = images(8).contiguous(memory_format=torch.channels_last)
    target = torch.randn(8, generator=torch.Generator().manual_seed(1)).cuda()
    losses = []
    for _ in range(30):
        with torch.autocast('cuda', dtype=torch.float16):
            out = network(x)[-1].float().mean((1, 2, 3))
        loss = (out - target).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(network)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert scaler.get_scale() > 2.0**10
    for name, value in network.named_buffers():
        if name.endswith('num_batches_tracked'):
            assert value == 30, name
    assert all(value.isfinite().all() for value in average.module.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(average.module.parameters(), network.parameters(), strict=True))


def test_steps_repeat(backend):
    """The passes always sum in the same order. cuDNN is set to deterministic, since its weight gradients may not."""
    network = small_network().cuda()
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        first, second = (gradients(network, images()) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_nothing_waits_for_the_gpu():
    pytest.importorskip('mmgroupnet.ops.passes.triton_passes', reason='Triton is not installed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(choice.ENVIRONMENT_VARIABLE, 'triton')
        network, x = small_network().cuda(), images()
        network(x)[-1].sum().backward()  # compiles the kernels and compares them with torch
        torch.cuda.set_sync_debug_mode('error')
        try:
            network(x)[-1].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')


def test_a_packed_model_stays_on_the_cpu():
    from mmgroupnet.deploy import pack

    packed = pack(small_network().eval())
    with pytest.raises(RuntimeError, match='a packed model cannot be moved to cuda'):
        packed.cuda()


def test_the_demo_trains(backend, tmp_path):
    """Trains the all-binary detector for one epoch with ``--amp`` from the command line, and resumes for another."""
    from mmgroupnet.datasets import generate_digits

    generate_digits(tmp_path / 'digits')
    command = [
        *(sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs/demo/fcos_groupnet_digits.py'), '--amp'),
        *('--work-dir', str(tmp_path / 'work'), '--cfg-options', 'train_cfg.max_epochs=1'),
        *(f'{name}_dataloader.dataset.data_root={tmp_path / "digits"}/' for name in ('train', 'val', 'test')),
        f'val_evaluator.ann_file={tmp_path / "digits"}/annotations/instances_val.json',
    ]
    for epoch, options in ((1, []), (2, ['train_cfg.max_epochs=2', 'resume=True'])):
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / 'work' / f'epoch_{epoch}.pth').exists()
