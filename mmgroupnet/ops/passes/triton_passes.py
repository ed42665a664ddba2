"""Passes of lean training by Triton's kernels, for GPUs; see :class:`mmgroupnet.ops.passes.Passes` for what each does.

Maps are channels_last, in float32 or half precision. Everything is computed in float32, and nothing waits for the GPU.

*Convolutions* are cuDNN's. In the forward pass they convolve signs in the cheapest type that is exact. Tensor cores
multiply -1 and +1 exactly in float16 and add in float32, which holds integers up to 2**24. Only the rounding of a sum
to float16 remains: with 11 bits, integers up to 2048 fit, and even ones up to 4096. A sum of n products of -1 and +1 is
even if n is even. So float16 is exact for n <= 2048 terms, and for an even number of terms up to 4096 if each sum has
all of its terms, which padding with zeros prevents. Sums of more terms are float32, with TF32 if torch allows it, which
also holds -1 and +1; they are rounded to 16 bits. This assumes that cuDNN multiplies matrices, without transforms such
as Winograd's: for channels_last maps it has no other algorithms. ``make test-gpu`` checks it.

In the backward pass they take signs in the dtype of the gradient.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgroupnet.ops.float_convolution import needs_contiguous
from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.kernels import count_pixels, nhwc
from mmgroupnet.ops.passes import triton_kernels as kernels
from mmgroupnet.ops.passes import triton_launch
from mmgroupnet.ops.passes.protocol import BranchGradient, Formula, KnownSurrogate, UnitGradients
from mmgroupnet.ops.passes.triton_launch import BLOCK_C, BLOCK_P, PROGRAMS, count_tiles, grid_of
from mmgroupnet.ops.passes.triton_norms import TritonNormPasses, gradient_sums_of_parts, moments_of_parts

# Number of weights of a program.
_BLOCK = 1024
# Warps of a program: Triton's own number, and more for kernels whose tiles would not fit into the registers of so few.
_WARPS, _WARPS_OF_MANY_MAPS = 4, 8
_FORMULAS = {
    Formula.POLYNOMIAL: kernels.POLYNOMIAL,
    Formula.CLIPPED_IDENTITY: kernels.CLIPPED_IDENTITY,
    Formula.SWISH: kernels.SWISH,
    Formula.TANH: kernels.TANH,
}


class _Signs(NamedTuple):
    """Signs that were computed together with a map.

    Attributes:
        x: The map.
        geometry: The unit that will convolve them.
        groups: The result of :meth:`TritonPasses._signs`.
    """

    x: Tensor
    geometry: UnitGeometry
    groups: list[Tensor]


def _single(vector: Tensor) -> Tensor:
    return vector.detach().float().contiguous()


def _branch_maps(like: Tensor, branches: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory for one channels_last map per branch: ``(branches, N, C, H, W)``."""
    shape = (branches, like.shape[0], *size, channels)
    return torch.empty(shape, dtype=dtype, device=like.device).permute(0, 1, 4, 2, 3)


def _steps(weight: Tensor) -> tuple[int, int]:
    """Steps in memory from one input channel of weights to the next, and from one tap to the next."""
    _, channels, height, width = weight.shape
    return (height * width, 1) if weight.is_contiguous() else (1, channels)


def _dense(weight: Tensor) -> Tensor:
    """Weights in one of the two memory orders that kernels support."""
    is_known = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return weight if is_known else weight.contiguous()


class _Branches:
    """Gradients of all branches, computed at once; see :data:`mmgroupnet.ops.passes.BranchGradient`.

    Args:
        maps: ``(K, N, C, H, W)``.
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps

    def __call__(self, k: int, reuse: bool = False) -> Tensor:
        return self.maps[k]


class TritonPasses:
    """Passes by Triton's kernels.

    Args:
        dtype: Dtype of the convolutions of the backward pass, and of merged weights.
    """

    norms = TritonNormPasses()

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.for_floats = self
        self._made: _Signs | None = None  # until they are convolved

    def prepare(self, x: Tensor) -> Tensor:
        return nhwc(x.detach())

    def convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        dtype = _dtype_of_sums(geometry)
        y = self._convolve(x, self._weight_signs(weight, dtype), geometry, dtype)
        if dtype == torch.float32 and geometry.sums_fit_int16:
            y = y.round_().to(torch.int16)
        return y

    def convolve_merged(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        return self._convolve(x, nhwc(weight.to(self.dtype)), geometry, self.dtype)

    def _convolve(self, x: Tensor, weight: Tensor, geometry: UnitGeometry, dtype: torch.dtype) -> Tensor:
        given = x.shape[1] // geometry.in_channels
        groups = self._signs(x, given, geometry, dtype)
        if geometry.shares_weights:  # branches are batch
            outs = list(_convolve(groups[0].flatten(0, 1), weight, geometry, 0).chunk(given))
        else:
            branches = geometry.branches(given)
            signs = [each for group in groups for each in group]
            weights = weight.chunk(1 if geometry.merges else branches)
            outs = [_convolve(signs[k % given], weights[k], geometry, k) for k in range(branches)]
        return nhwc(outs[0] if len(outs) == 1 else torch.cat(outs, dim=1))

    def _signs(self, x: Tensor, branches: int, geometry: UnitGeometry, dtype: torch.dtype) -> list[Tensor]:
        """Signs of the branches, with the border of the convolution, ``(K', N, C, H', W')`` for each group of K'
        consecutive branches with equal borders."""
        made = self._made
        if made is not None and made.geometry == geometry and made.x.data_ptr() == x.data_ptr():
            self._made = None
            if made.groups[0].dtype == dtype:
                return made.groups
        channels = x.shape[1] // branches
        rows, columns = x.shape[2:]
        found: list[Tensor] = []
        for pad, group in _groups_of_borders(branches, geometry):
            size = (rows + 2 * pad[0], columns + 2 * pad[1])
            out = _branch_maps(x, len(group), channels, size, dtype)
            triton_launch.launch(
                kernels.signs_kernel,
                grid_of(out[0], channels, len(group)),
                x,
                out,
                count_pixels(out[0]),
                channels,
                branches,
                group[0],
                rows,
                columns,
                *pad,
                geometry.padding_value,
                BLOCK_P=BLOCK_P,
                BLOCK_C=BLOCK_C,
            )
            found.append(out)
        return found

    def _weight_signs(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        weight = _dense(weight)
        out = torch.empty_like(weight, dtype=dtype, memory_format=torch.channels_last)
        triton_launch.launch(
            kernels.weight_signs_kernel,
            (count_tiles(weight.numel(), _BLOCK),),
            weight,
            out,
            weight.numel(),
            weight.shape[2] * weight.shape[3],
            weight.shape[1],
            *_steps(weight),
            BLOCK=_BLOCK,
        )
        return out

    def moments(self, y: Tensor, relu: bool) -> Tensor:
        partial, parts = moments_of_parts(nhwc(y), relu)
        pixels = count_pixels(y)
        part = torch.arange(parts, device=y.device)
        tiles = count_tiles(pixels, BLOCK_P)
        counts = (tiles - part + parts - 1) // parts * BLOCK_P
        counts[(tiles - 1) % parts] -= tiles * BLOCK_P - pixels
        mean, rest = partial.double()
        totals = counts.double().view(-1, 1) * mean
        return torch.stack([totals.sum(0), (rest + totals * mean).sum(0)])

    def _place_of_signs(self, x: Tensor, following: UnitGeometry | None) -> tuple[Tensor | None, tuple[int, int]]:
        """Memory for the signs of a map that the next unit will convolve, ``(K, N, C, H', W')``, and their border; None
        if they are not computed together with the map."""
        if following is None:
            return None, (0, 0)
        branches = x.shape[1] // following.in_channels
        ((pad, _), *others) = _groups_of_borders(branches, following)
        if others:
            return None, (0, 0)
        size = (x.shape[2] + 2 * pad[0], x.shape[3] + 2 * pad[1])
        signs = _branch_maps(x, branches, following.in_channels, size, _dtype_of_sums(following))
        self._made = _Signs(x, following, [signs])
        return signs, pad

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
        y = nhwc(y)  # floats may come in any order
        out = torch.empty_like(y, dtype=dtype)
        signs, pad = self._place_of_signs(out, following)
        branches = 1 if signs is None else len(signs)
        channels = y.shape[1] // branches
        triton_launch.launch(
            kernels.affine_kernel,
            grid_of(y if signs is None else signs[0], channels, branches),
            y,
            _single(scale),
            _single(shift),
            y if residual is None else nhwc(residual),
            out,
            out if signs is None else signs,
            count_pixels(y if signs is None else signs[0]),
            channels,
            branches,
            *y.shape[2:],
            *pad,
            0 if following is None else following.padding_value,
            RELU=relu,
            HAS_RESIDUAL=residual is not None,
            HAS_SIGNS=signs is not None,
            BLOCK_P=BLOCK_P,
            BLOCK_C=BLOCK_C,
            num_warps=_WARPS if signs is None else _WARPS_OF_MANY_MAPS,
        )
        return out

    def gradient_sums(self, gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
        partial, _ = gradient_sums_of_parts(gradient, nhwc(y), relu, y.shape[1], None)
        return partial.sum(1, dtype=torch.float64)

    def affine_gradient(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> BranchGradient:
        y, channels = nhwc(y), y.shape[1] // branches
        out = _branch_maps(y, branches, channels, (y.shape[2], y.shape[3]), self.dtype)
        triton_launch.launch(
            kernels.affine_gradient_kernel,
            grid_of(y, channels, branches),
            nhwc(gradient),
            y,
            *map(_single, (p, q, s)),
            out,
            count_pixels(y),
            channels,
            branches,
            RELU=relu,
            BLOCK_P=BLOCK_P,
            BLOCK_C=BLOCK_C,
        )
        return _Branches(out)

    def unit_gradients(self, at: UnitGradients) -> tuple[Tensor | None, Tensor | None]:
        geometry, gradient_of = at.geometry, at.gradient_of
        groups = self._signs(at.x, at.branches, geometry, self.dtype)
        weight = nhwc(at.weight.to(self.dtype)) if geometry.merges else self._weight_signs(at.weight, self.dtype)
        gradients: Tensor | list[Tensor]
        if isinstance(gradient_of, _Branches):
            gradients = gradient_of.maps
        else:
            gradients = [nhwc(gradient_of(k, False)).to(self.dtype) for k in range(at.branches)]
        if at.shares_weights:  # branches are batch
            batch = gradients.flatten(0, 1) if isinstance(gradients, Tensor) else torch.cat(gradients)
            found = [_convolution_gradients(at, batch, groups[0].flatten(0, 1), weight, 0)]
            of_signs = [part for of_batch, _ in found if of_batch is not None for part in of_batch.chunk(at.branches)]
        else:
            signs, weights = (each for group in groups for each in group), weight.chunk(at.branches)
            found = [
                _convolution_gradients(at, *operands, k)
                for k, operands in enumerate(zip(gradients, signs, weights, strict=True))
            ]
            of_signs = [gradient for gradient, _ in found if gradient is not None]
        of_weights = [gradient for _, gradient in found if gradient is not None]
        return (
            self._sign_gradient(at, of_signs) if at.needs_x else None,
            self._weight_gradient(at, of_weights) if at.needs_weight else None,
        )

    @staticmethod
    def _weight_gradient(at: UnitGradients, gradients: Sequence[Tensor]) -> Tensor:
        out = torch.empty_like(_dense(at.weight))
        # All of them in the memory order of the first, which cuDNN uses for all.
        layout = torch.contiguous_format if gradients[0].is_contiguous() else torch.channels_last
        gradients = tuple(value.contiguous(memory_format=layout) for value in gradients)
        count = gradients[0].numel()
        triton_launch.launch(
            kernels.weight_gradient_kernel,
            (count_tiles(count, _BLOCK), len(gradients)),
            gradients,
            out if at.scale is None else at.scale,
            out,
            count,
            out.shape[2] * out.shape[3],
            out.shape[1],
            *_steps(out),
            *_steps(gradients[0]),
            0 if at.scale is None else at.scale.stride(0),
            torch.finfo(torch.float32 if at.scale is None else at.scale.dtype).tiny,
            BASES=len(gradients),
            HAS_SCALE=at.scale is not None,
            BLOCK=_BLOCK,
        )
        return out

    @staticmethod
    def _sign_gradient(at: UnitGradients, gradients: Sequence[Tensor]) -> Tensor:
        x, branches = at.x, at.branches
        channels = x.shape[1] // branches
        surrogates = [at.surrogate(k) for k in range(branches)]
        first = surrogates[0]
        formula = Formula.POLYNOMIAL if first is None else getattr(first, 'formula', None)
        factors = gradients = [nhwc(value) for value in gradients]
        if formula is None:
            parts = x.float().chunk(branches, dim=1)
            factors = [nhwc(function(part)) for function, part in zip(surrogates, parts, strict=True) if function]
        out = torch.empty_like(x)
        for pad, group in _groups_of_borders(branches, at.geometry):
            triton_launch.launch(
                kernels.sign_gradient_kernel,
                grid_of(x, channels, len(group)),
                tuple(gradients[k] for k in group),
                tuple(factors[k] for k in group),
                x,
                x if at.residual is None else at.residual,
                out,
                count_pixels(x),
                channels,
                branches,
                group[0],
                *x.shape[2:],
                *pad,
                first.sharpness if isinstance(first, KnownSurrogate) else 1.0,
                BASES=len(group),
                SURROGATE=kernels.GIVEN if formula is None else _FORMULAS[formula],
                HAS_RESIDUAL=at.residual is not None,
                BLOCK_P=BLOCK_P,
                BLOCK_C=BLOCK_C,
            )
        return out

    def connect(self, x: Tensor, gate: Tensor, scales: Tensor, following: UnitGeometry | None = None) -> Tensor:
        branches, out = len(gate), torch.empty_like(x)
        channels = x.shape[1] // branches
        signs, pad = self._place_of_signs(out, following)
        triton_launch.launch(
            kernels.connect_kernel,
            grid_of(x if signs is None else signs[0], channels),
            x,
            gate,
            scales,
            out,
            out if signs is None else signs,
            count_pixels(x if signs is None else signs[0]),
            channels,
            branches,
            *x.shape[2:],
            *pad,
            0 if following is None else following.padding_value,
            gate.stride(0),
            scales.stride(0),
            HAS_SIGNS=signs is not None,
            BLOCK_P=BLOCK_P,
            BLOCK_C=BLOCK_C,
            num_warps=_WARPS if signs is None else _WARPS_OF_MANY_MAPS,
        )
        return out

    def connect_gradient(
        self, gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        branches, out = len(gate), torch.empty_like(x)
        channels = x.shape[1] // branches
        parts = min(grid_of(x, channels)[0], PROGRAMS)
        sums = torch.empty(parts, 2, branches, device=x.device)
        triton_launch.launch(
            kernels.connect_gradient_kernel,
            (parts,),
            nhwc(gradient),
            x,
            gate,
            scales,
            out,
            sums,
            count_pixels(x),
            channels,
            branches,
            parts,
            gate.stride(0),
            scales.stride(0),
            BLOCK_P=BLOCK_P,
            BLOCK_C=BLOCK_C,
            BLOCK_K=max(8, 1 << (branches - 1).bit_length()),
            num_warps=_WARPS_OF_MANY_MAPS,
        )
        return (out, *sums.sum(0))


def _dtype_of_sums(geometry: UnitGeometry) -> torch.dtype:
    """The cheapest dtype in which the sums of a unit are exact, see the top of this file."""
    has_all_terms = geometry.padding_value != 0 or not any(
        any(geometry.pad_of(k)) for k in range(len(geometry.dilations))
    )
    terms = geometry.row_bits
    is_exact = terms <= 2048 or (terms <= 4096 and terms % 2 == 0 and has_all_terms)
    return torch.float16 if is_exact else torch.float32


def _border(geometry: UnitGeometry, branch: int) -> tuple[int, int]:
    """Rows and columns of a branch's border of -1 or +1; convolutions pad with zeros themselves."""
    return geometry.pad_of(0 if geometry.shares_weights else branch) if geometry.padding_value else (0, 0)


def _groups_of_borders(branches: int, geometry: UnitGeometry) -> list[tuple[tuple[int, int], list[int]]]:
    """Groups of consecutive branches with equal borders."""
    groups = groupby(range(branches), key=lambda k: _border(geometry, k))
    return [(border, list(group)) for border, group in groups]


def _padding(geometry: UnitGeometry, branch: int) -> tuple[int, int]:
    return (0, 0) if geometry.padding_value else geometry.pad_of(branch)


def _convolve(signs: Tensor, weight: Tensor, geometry: UnitGeometry, branch: int) -> Tensor:
    g = geometry
    if needs_contiguous(g, signs):
        signs = signs.contiguous()
    return F.conv2d(signs, weight, None, g.stride, _padding(g, branch), g.dilations[branch], g.groups)


def _convolution_gradients(
    at: UnitGradients, gradient: Tensor, signs: Tensor, weight: Tensor, branch: int
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of one convolution by the signs with their border, and by the weights."""
    g = at.geometry
    rate = g.dilations[branch]
    if needs_contiguous(g, gradient):
        gradient, signs = gradient.contiguous(), signs.contiguous()
    of_signs, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        signs,
        weight,
        None,
        g.stride,
        _padding(g, branch),
        (rate, rate),
        False,
        (0, 0),
        g.groups,
        (at.needs_x, at.needs_weight, False),
    )
    return of_signs, of_weight
