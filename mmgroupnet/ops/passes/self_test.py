"""Compares a unit in Triton's kernels with torch, on a device that has not run the kernels before."""

import torch
from torch import Tensor
from torch.testing import assert_close

from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.passes.protocol import UnitGradients
from mmgroupnet.ops.passes.torch_passes import TorchPasses
from mmgroupnet.ops.passes.triton_passes import TritonPasses

_BRANCHES, _CHANNELS = 2, 32


def compare_with_torch(device: torch.device, dtype: torch.dtype) -> None:
    """Runs each kernel on small maps of a dtype.

    Raises:
        AssertionError: If they give other numbers than torch.
        Exception: Any exception of Triton, if they do not compile or run.
    """
    generator = torch.Generator().manual_seed(0)  # does not change the random numbers of training

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    channels = _BRANCHES * _CHANNELS
    geometry = UnitGeometry(_BRANCHES, _CHANNELS, _CHANNELS, 1, (3, 3), (1, 1), (1, 1), 1, (1,) * _BRANCHES)
    maps = [random(2, channels, 9, 7).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    weight, vectors = random(channels, _CHANNELS, 3, 3), [random(channels).abs() + 0.1 for _ in range(3)]
    found, expected = (
        _unit(passes, geometry, maps, weight, vectors) for passes in (TritonPasses(dtype), TorchPasses(dtype))
    )
    # Half precision rounds maps, and TF32 the products of gradients.
    tolerance = 0.05 if dtype in (torch.float16, torch.bfloat16) else 0.01
    for value, wanted in zip(found, expected, strict=True):
        value, wanted = value.float(), wanted.float()
        error = (value - wanted).norm() / wanted.norm()
        assert_close(error, torch.zeros_like(error), rtol=0, atol=tolerance)


def _unit(
    passes: TorchPasses | TritonPasses,
    geometry: UnitGeometry,
    maps: list[Tensor],
    weight: Tensor,
    vectors: list[Tensor],
) -> list[Tensor]:
    """A list of the results of all passes of a unit."""
    x, gradient, residual = (passes.prepare(value) for value in maps)
    scale, shift, term = vectors
    gate = scale[:_BRANCHES]
    x = passes.connect(x, gate, gate)
    y = passes.convolve(x, weight, geometry)
    if passes.norms is None:
        moments = passes.moments(y, True)
        mean, square = moments.float() / (y.numel() // y.shape[1])
        deviation = (square - mean.square() + 1e-5).rsqrt()
        sums = passes.gradient_sums(gradient, y, True).float()
        of_norm = [deviation * (sums[1] - mean * sums[0]), sums[0]]
    else:
        ones = torch.ones_like(scale)
        mean, deviation, _ = passes.norms.statistics(y, True, 1, ones, None, None, None, 1e-5, True)
        *of_norm, _ = passes.norms.gradients(gradient, y, True, 1, (mean, deviation), ones, None, True)
    out = passes.affine(y, scale, shift, residual, True, x.dtype)
    gradient_of = passes.affine_gradient(gradient, y, scale, -shift / 100, term, _BRANCHES, True)
    at = UnitGradients(geometry, _BRANCHES, False, gradient_of, x, weight, scale, residual, lambda k: None, True, True)
    of_x, of_weight = passes.unit_gradients(at)
    return [x, y, mean, deviation, *of_norm, out, of_x, of_weight, *passes.connect_gradient(gradient, x, gate, gate)]
