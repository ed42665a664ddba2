"""Passes of lean training by the compiled kernels, on the CPU; see :class:`mmgroupnet.ops.passes.Passes` for what each
does. Maps are float32 and channels_last, integers int16."""

import torch
from torch import Tensor

from mmgroupnet.ops import kernels
from mmgroupnet.ops.geometry import PARAMETERS, UnitGeometry
from mmgroupnet.ops.kernels import count_pixels, nhwc
from mmgroupnet.ops.packing import pack_weight
from mmgroupnet.ops.passes.branchwise import BranchwisePasses
from mmgroupnet.ops.passes.kernel_norms import KernelNormPasses, lowest
from mmgroupnet.ops.passes.protocol import BranchGradient, Surrogate
from mmgroupnet.ops.passes.torch_passes import TorchPasses

_SIGNS_AT_ONCE = 64


def _empty_branch(like: Tensor, channels: int) -> Tensor:
    batch, _, height, width = like.shape
    return torch.empty(batch, height, width, channels, dtype=torch.float32)


class KernelPasses(BranchwisePasses):
    """Passes by the compiled kernels; torch handles floats and sums beyond 16 bits, in float32.

    Args:
        dtype: Dtype of the gradients of convolutions and of full-precision shortcuts, float32 or bfloat16. Signs are
            exact in both. Default: float32.
    """

    for_floats = TorchPasses(torch.float32)
    norms = KernelNormPasses()

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def prepare(self, x: Tensor) -> Tensor:
        return nhwc(x.detach().float())

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        if not geometry.sums_fit_int16:
            return self.for_floats.convolve(x, weight, geometry)
        library, threads = kernels.loaded(), torch.get_num_threads()
        unit = kernels.describe_unit(geometry, [pack_weight(weight), *[None] * (len(PARAMETERS) - 1)])
        batch, folded, height, width = x.shape
        given = folded // geometry.in_channels
        words = torch.empty(count_pixels(x) * given * -(-geometry.in_channels // 64), dtype=torch.int64)
        library.mmg_sign_pack(
            x.data_ptr(), False, batch, height * width, given, geometry.in_channels, words.data_ptr(), threads
        )
        size = geometry.output_size(height, width)
        out_channels = geometry.branches(given) * geometry.out_channels
        out = torch.empty(batch, out_channels, *size, dtype=torch.int16, memory_format=torch.channels_last)
        library.mmg_convolve(unit, batch, height, width, words.data_ptr(), given, True, out.data_ptr(), threads)
        return out

    def convolve_merged(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        return self.for_floats.convolve_merged(x, weight, geometry)

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        sums = torch.empty(2, y.shape[1], dtype=torch.float64)
        kernels.loaded().mmg_relu_sums(
            y.data_ptr(), lowest(relu), count_pixels(y), y.shape[1], sums.data_ptr(), torch.get_num_threads()
        )
        return sums

    def affine(
        self,
        y: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
        following: UnitGeometry | None = None,
    ) -> Tensor:
        scale, shift = scale.float(), shift.float()
        residual = None if residual is None else nhwc(residual)
        out = torch.empty_like(y, dtype=torch.float32)
        kernels.loaded().mmg_relu_affine(
            y.data_ptr(),
            lowest(relu),
            scale.data_ptr(),
            shift.data_ptr(),
            kernels.pointer(residual),
            count_pixels(y),
            y.shape[1],
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out.to(dtype)

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        gradient = nhwc(gradient)
        sums = torch.empty(2, y.shape[1], dtype=torch.float64)
        kernels.loaded().mmg_gradient_sums(
            gradient.data_ptr(),
            y.data_ptr(),
            lowest(relu),
            count_pixels(y),
            y.shape[1],
            sums.data_ptr(),
            torch.get_num_threads(),
        )
        return sums

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        gradient = nhwc(gradient)
        vectors = [vector.float().contiguous() for vector in (p, q, s)]
        channels = y.shape[1] // branches
        last: list[Tensor] = []

        def branch(k: int, reuse: bool = False) -> Tensor:
            out = last.pop() if reuse and last else _empty_branch(y, channels)
            last[:] = [out]
            kernels.loaded().mmg_affine_gradient(
                gradient.data_ptr(),
                y.data_ptr(),
                lowest(relu),
                *(vector.data_ptr() for vector in vectors),
                count_pixels(y),
                y.shape[1],
                k * channels,
                channels,
                out.data_ptr(),
                torch.get_num_threads(),
            )
            return out.permute(0, 3, 1, 2)

        return branch

    def branch_signs(self, x: Tensor, k: int, branches: int) -> Tensor:
        channels = x.shape[1] // branches
        out = _empty_branch(x, channels)
        kernels.loaded().mmg_branch_signs(
            x.data_ptr(),
            count_pixels(x),
            x.shape[1],
            k * channels,
            channels,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out.permute(0, 3, 1, 2).to(self.dtype)

    def weight_signs(self, weight: Tensor) -> Tensor:
        if weight.numel() % _SIGNS_AT_ONCE:
            return self.for_floats.weight_signs(weight)
        weight = weight.contiguous()
        out = torch.empty_like(weight)
        # The kernel treats the weights as pixels of 64 channels, which it divides among threads.
        size = _SIGNS_AT_ONCE
        kernels.loaded().mmg_branch_signs(
            weight.data_ptr(), weight.numel() // size, size, 0, size, out.data_ptr(), torch.get_num_threads()
        )
        return out

    @staticmethod
    def sums_over_padding(geometry: UnitGeometry, base: int, gradient: Tensor, size: tuple[int, int]) -> Tensor:
        gradient = nhwc(gradient.float())
        batch, channels, *out_size = gradient.shape
        sums = torch.empty(channels, 1, *geometry.kernel_size)
        window = kernels.Window(*geometry.kernel_size, *geometry.stride, *geometry.pad_of(base))
        kernels.loaded().mmg_padding_sums(
            gradient.data_ptr(),
            batch,
            *size,
            *out_size,
            channels,
            window,
            geometry.dilations[base],
            sums.data_ptr(),
        )
        return sums

    def sign_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        residual: Tensor | None,
        k: int,
        branches: int,
        out: Tensor,
        surrogate: Surrogate | None,
    ) -> None:
        if surrogate is not None:
            self.for_floats.sign_gradient(gradient, x, residual, k, branches, out, surrogate)
            return
        gradient, channels = nhwc(gradient.float()), x.shape[1] // branches
        kernels.loaded().mmg_sign_gradient(
            gradient.data_ptr(),
            x.data_ptr(),
            kernels.pointer(residual),
            count_pixels(x),
            x.shape[1],
            k * channels,
            channels,
            out.data_ptr(),
            torch.get_num_threads(),
        )

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor, following: UnitGeometry | None = None) -> Tensor:
        gate, scales = gate.float().contiguous(), scales.float().contiguous()
        num_bases, out = len(gate), torch.empty_like(x)
        kernels.loaded().mmg_connect(
            x.data_ptr(),
            count_pixels(x),
            num_bases,
            x.shape[1] // num_bases,
            scales.data_ptr(),
            gate.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gate, scales, gradient = gate.float().contiguous(), scales.float().contiguous(), nhwc(gradient)
        num_bases, out = len(gate), torch.empty_like(x)
        sums = torch.empty(2, num_bases, dtype=torch.float64)
        kernels.loaded().mmg_connect_gradient(
            gradient.data_ptr(),
            x.data_ptr(),
            gate.data_ptr(),
            scales.data_ptr(),
            count_pixels(x),
            num_bases,
            x.shape[1] // num_bases,
            out.data_ptr(),
            sums.data_ptr(),
            torch.get_num_threads(),
        )
        return (out, *sums)
