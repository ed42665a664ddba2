"""Kernels of lean training on GPUs, in Triton; :mod:`mmgroupnet.ops.passes.triton_passes` launches them.

A map ``(N, K*C, H, W)`` in channels_last is a matrix of pixels and channels. A kernel works on tiles of it: it reads
its inputs once, computes in float32, and writes its result once. If branches are convolved one by one, each has its own
matrix, ``(K, pixels, C)``.

Here y are the sums of a convolution, and r is ``max(y, 0)``, or y without ``RELU``. Scales and gates may be expanded,
so kernels take the step from one value to the next. Sizes do not need separate kernels, except whether the channels are
a multiple of 16: then a thread reads 16 bytes at once.
"""

from collections.abc import Callable

import triton
import triton.language as tl

# Pixels and channels of a tile.
TILE = (32, 64)

# Surrogate gradients whose formula the kernel has; for others it gets the values.
POLYNOMIAL, CLIPPED_IDENTITY, SWISH, TANH, GIVEN = range(5)
_POLYNOMIAL, _CLIPPED_IDENTITY = tl.constexpr(POLYNOMIAL), tl.constexpr(CLIPPED_IDENTITY)
_SWISH, _TANH = tl.constexpr(SWISH), tl.constexpr(TANH)

# Arguments for which Triton would compile another kernel if they are 1 or a multiple of 16.
_SIZES = {
    *('pixels', 'count', 'parts', 'branches', 'first', 'norm_channels', 'rows', 'columns', 'row_padding'),
    *('column_padding', 'border', 'taps', 'in_channels', 'channel_step', 'tap_step', 'source_channel_step'),
    *('source_tap_step', 'scale_step', 'gate_step', 'scales_step'),
}
# Arguments whose addresses need not be multiples of 16 bytes: small vectors.
_VECTORS = {
    *('mean', 'inverse', 'scale', 'shift', 'weight', 'bias', 'running_mean', 'running_var', 'tracked', 'partial'),
    *('p', 'q', 's', 'of_weight', 'of_bias', 'gate', 'scales', 'sums'),
}


def kernel(function: Callable) -> Callable:
    """Decorates a kernel that is compiled once for all sizes."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes, vectors = ([name for name in names if name in kind] for kind in (_SIZES, _VECTORS))
    return triton.jit(do_not_specialize=sizes, do_not_specialize_on_alignment=vectors)(function)


@triton.jit
def _tile(channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pixels and channels of a program. Programs that run at the same time read neighbouring pixels. They are counted
    along the first axis of the grid, the only one that may be longer than 65,535."""
    tiles = (channels + BLOCK_C - 1) // BLOCK_C
    p = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    return p, tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def at_least_zero(value):
    """``max(value, 0)``; keeps NaN."""
    return tl.where(value < 0, 0.0, value)


@triton.jit
def load_sums(y, offsets, mask, RELU: tl.constexpr):
    """r as float32."""
    value = tl.load(y + offsets, mask, other=0).to(tl.float32)
    if RELU:
        value = at_least_zero(value)
    return value


@triton.jit
def _inside_of_border(p, rows, columns, row_padding, column_padding):
    """The positions of the pixels of images with a border in images without it, and a mask of the pixels inside."""
    width = columns + 2 * column_padding
    height = rows + 2 * row_padding
    column = p % width - column_padding
    row = p // width % height - row_padding
    is_inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return (p // (width * height) * rows + row) * columns + column, is_inside


@triton.jit
def _signs_with_border(value, is_inside, border):
    """Signs -1 and +1 inside (zeros are +1), and the border's value around them."""
    return tl.where(is_inside[:, None], tl.where(value >= 0, 1.0, -1.0), border.to(tl.float32))


@kernel
def affine_kernel(
    y,
    scale,
    shift,
    residual,
    out,
    signs,
    pixels,
    channels,
    branches,
    rows,
    columns,
    row_padding,
    column_padding,
    border,
    RELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SIGNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``scale * r + shift + residual``; with ``HAS_SIGNS`` also the signs of the result, as from the kernel for signs.

    ``pixels`` then counts the pixels of images with the border.
    """
    branch = tl.program_id(1)
    p, c = _tile(channels, BLOCK_P, BLOCK_C)
    has_channel = c < channels
    is_pixel = p < pixels
    source = p
    is_inside = is_pixel
    if HAS_SIGNS:
        source, is_inside = _inside_of_border(p, rows, columns, row_padding, column_padding)
        is_inside = is_inside & is_pixel
    mask = is_inside[:, None] & has_channel[None, :]
    at = source[:, None] * (branches * channels) + branch * channels + c[None, :]
    factor = tl.load(scale + branch * channels + c, has_channel, other=0)
    term = tl.load(shift + branch * channels + c, has_channel, other=0)
    value = load_sums(y, at, mask, RELU) * factor[None, :] + term[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask, other=0).to(tl.float32)
    # Rounded as it will be read again: rounding may turn a small number into zero.
    value = value.to(out.dtype.element_ty)
    tl.store(out + at, value, mask)
    if HAS_SIGNS:
        own = (branch * pixels + p)[:, None] * channels + c[None, :]
        tl.store(signs + own, _signs_with_border(value, is_inside, border), is_pixel[:, None] & has_channel[None, :])


@kernel
def affine_gradient_kernel(
    gradient,
    y,
    p,
    q,
    s,
    out,
    pixels,
    channels,
    branches,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``p * g + q * r + s`` where y > 0 (everywhere without ReLU), branch by branch."""
    branch = tl.program_id(1)
    pixel, c = _tile(channels, BLOCK_P, BLOCK_C)
    has_channel = c < channels
    mask = (pixel < pixels)[:, None] & has_channel[None, :]
    at = pixel[:, None] * (branches * channels) + branch * channels + c[None, :]
    of_gradient = tl.load(p + branch * channels + c, has_channel, other=0)
    of_r = tl.load(q + branch * channels + c, has_channel, other=0)
    term = tl.load(s + branch * channels + c, has_channel, other=0)
    value = tl.load(y + at, mask, other=0).to(tl.float32)
    g = tl.load(gradient + at, mask, other=0).to(tl.float32)
    found = of_gradient[None, :] * g + of_r[None, :] * value + term[None, :]
    if RELU:
        found = tl.where(value > 0, found, 0.0)
    tl.store(out + (branch * pixels + pixel)[:, None] * channels + c[None, :], found, mask)


@kernel
def signs_kernel(
    x,
    out,
    pixels,
    channels,
    branches,
    first,
    rows,
    columns,
    row_padding,
    column_padding,
    border,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Signs of some branches, from ``first`` on, with a border; zeros are +1.

    ``pixels`` counts the pixels of the output; ``rows`` and ``columns`` are the size of an input image.
    """
    branch = tl.program_id(1)
    p, c = _tile(channels, BLOCK_P, BLOCK_C)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    source, is_inside = _inside_of_border(p, rows, columns, row_padding, column_padding)
    at = source[:, None] * (branches * channels) + (first + branch) * channels + c[None, :]
    value = tl.load(x + at, mask & is_inside[:, None], other=0)
    own = (branch * pixels + p)[:, None] * channels + c[None, :]
    tl.store(out + own, _signs_with_border(value, is_inside, border), mask)


@kernel
def weight_signs_kernel(weight, out, count, taps, in_channels, channel_step, tap_step, BLOCK: tl.constexpr):
    """Signs of latent weights, in the order (row, tap, channel) of channels_last.

    The steps lead from one channel or tap to the next in the latent weights.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = at % in_channels
    tap = at // in_channels % taps
    row = at // (in_channels * taps)
    source = row * (in_channels * taps) + channel * channel_step + tap * tap_step
    value = tl.load(weight + source, at < count, other=0)
    tl.store(out + at, tl.where(value >= 0, 1.0, -1.0), at < count)


@kernel
def weight_gradient_kernel(
    gradients,
    scale,
    out,
    count,
    taps,
    in_channels,
    channel_step,
    tap_step,
    source_channel_step,
    source_tap_step,
    scale_step,
    tiny,
    BASES: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of latent weights: the gradients of the scaled signs, one tensor per base, divided by the scales.

    ``count`` is the number of weights of one base; steps as for the signs of weights.
    """
    base = tl.program_id(1)
    source = gradients[0]
    for other in tl.static_range(1, BASES):
        source = tl.where(base == other, gradients[other], source)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    channel = at % in_channels
    tap = at // in_channels % taps
    row = at // (in_channels * taps)
    begin = row * (in_channels * taps)
    value = tl.load(source + begin + channel * source_channel_step + tap * source_tap_step, mask, other=0)
    value = value.to(tl.float32)
    if HAS_SCALE:
        at_scale = (base * (count // (in_channels * taps)) + row) * scale_step
        of_row = tl.load(scale + at_scale, mask, other=1).to(tl.float32)
        value = value / tl.maximum(of_row, tiny)
    tl.store(out + base * count + begin + channel * channel_step + tap * tap_step, value, mask)


@kernel
def sign_gradient_kernel(
    gradients,
    factors,
    x,
    residual,
    out,
    pixels,
    channels,
    branches,
    first,
    rows,
    columns,
    row_padding,
    column_padding,
    sharpness,
    BASES: tl.constexpr,
    SURROGATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``surrogate(x) * g + residual`` of some branches, from ``first`` on; g comes with the border of the signs.

    ``pixels`` counts the pixels of x; ``rows`` and ``columns`` are the size of an image. With ``SURROGATE`` = GIVEN,
    ``factors`` are the values of the surrogate gradient; otherwise they are not read.
    """
    branch = tl.program_id(1)
    source = gradients[0]
    factor = factors[0]
    for other in tl.static_range(1, BASES):
        source = tl.where(branch == other, gradients[other], source)
        factor = tl.where(branch == other, factors[other], factor)
    p, c = _tile(channels, BLOCK_P, BLOCK_C)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    line = p // columns
    row = line % rows + row_padding
    image = line // rows
    padded = (image * (rows + 2 * row_padding) + row) * (columns + 2 * column_padding) + p % columns + column_padding
    g = tl.load(source + padded[:, None] * channels + c[None, :], mask, other=0).to(tl.float32)
    at = p[:, None] * (branches * channels) + (first + branch) * channels + c[None, :]
    z = tl.load(x + at, mask, other=0).to(tl.float32)
    if SURROGATE == _POLYNOMIAL:
        slope = at_least_zero(2.0 - 2.0 * tl.abs(z))
    elif SURROGATE == _CLIPPED_IDENTITY:
        slope = tl.where(tl.abs(z) <= 1.0, 1.0, 0.0)
    elif SURROGATE == _SWISH:
        # With e = exp(-|b z|): tanh(|b z| / 2) = (1 - e) / (1 + e), and 1 / (1 + cosh(b z)) = 2 e / (1 + e)^2.
        size = tl.abs(sharpness * z)
        size = tl.where(size > 100.0, 100.0, size)
        e = tl.exp(-size)
        slope = 2.0 * sharpness * (2.0 - size * (1.0 - e) / (1.0 + e)) * e / ((1.0 + e) * (1.0 + e))
    elif SURROGATE == _TANH:
        # With e = exp(-2 |t z|): 1 - tanh(t z)^2 = 4 e / (1 + e)^2.
        e = tl.exp(-2.0 * tl.abs(sharpness * z))
        slope = tl.maximum(sharpness, 1.0) * 4.0 * e / ((1.0 + e) * (1.0 + e))
    else:
        slope = tl.load(factor + p[:, None] * channels + c[None, :], mask, other=0).to(tl.float32)
    found = slope * g
    if HAS_RESIDUAL:
        found += tl.load(residual + at, mask, other=0).to(tl.float32)
    tl.store(out + at, found, mask)


@kernel
def connect_kernel(
    x,
    gate,
    scales,
    out,
    signs,
    pixels,
    channels,
    branches,
    rows,
    columns,
    row_padding,
    column_padding,
    border,
    gate_step,
    scales_step,
    HAS_SIGNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``m + gate[i] * (x_i - m)`` for all branches, with ``m = sum_j scales[j] * x_j``; signs as for the affine map."""
    p, c = _tile(channels, BLOCK_P, BLOCK_C)
    has_channel = c < channels
    is_pixel = p < pixels
    source = p
    is_inside = is_pixel
    if HAS_SIGNS:
        source, is_inside = _inside_of_border(p, rows, columns, row_padding, column_padding)
        is_inside = is_inside & is_pixel
    mask = is_inside[:, None] & has_channel[None, :]
    at = source[:, None] * (branches * channels) + c[None, :]
    merged = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    for j in range(branches):
        value = tl.load(x + at + j * channels, mask, other=0).to(tl.float32)
        merged += tl.load(scales + j * scales_step).to(tl.float32) * value
    for i in range(branches):
        # From the cache: this program has just read it.
        value = tl.load(x + at + i * channels, mask, other=0).to(tl.float32)
        value = merged + tl.load(gate + i * gate_step).to(tl.float32) * (value - merged)
        rounded = value.to(out.dtype.element_ty)
        tl.store(out + at + i * channels, rounded, mask)
        if HAS_SIGNS:
            own = (i * pixels + p)[:, None] * channels + c[None, :]
            made = _signs_with_border(rounded, is_inside, border)
            tl.store(signs + own, made, is_pixel[:, None] & has_channel[None, :])


@kernel
def connect_gradient_kernel(
    gradient,
    x,
    gate,
    scales,
    out,
    sums,
    pixels,
    channels,
    branches,
    parts,
    gate_step,
    scales_step,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradient of the connection by x, and partial sums of the gradients by gate and scales, ``(parts, 2,
    branches)``."""
    part = tl.program_id(0)
    tiles_of_channels = (channels + BLOCK_C - 1) // BLOCK_C
    tiles = (pixels + BLOCK_P - 1) // BLOCK_P * tiles_of_channels
    k = tl.arange(0, BLOCK_K)
    of_gates = tl.full((BLOCK_K,), 0.0, tl.float32)
    of_scales = tl.full((BLOCK_K,), 0.0, tl.float32)
    for tile in range(part, tiles, parts):
        p = (tile // tiles_of_channels).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        c = tile % tiles_of_channels * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = (p < pixels)[:, None] & (c < channels)[None, :]
        at = p[:, None] * (branches * channels) + c[None, :]
        merged = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
        of_merged = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
        for j in range(branches):
            value = tl.load(x + at + j * channels, mask, other=0).to(tl.float32)
            merged += tl.load(scales + j * scales_step).to(tl.float32) * value
            g = tl.load(gradient + at + j * channels, mask, other=0).to(tl.float32)
            of_merged += (1.0 - tl.load(gate + j * gate_step).to(tl.float32)) * g
        for i in range(branches):
            value = tl.load(x + at + i * channels, mask, other=0).to(tl.float32)
            g = tl.load(gradient + at + i * channels, mask, other=0).to(tl.float32)
            found = tl.load(gate + i * gate_step).to(tl.float32) * g
            found += tl.load(scales + i * scales_step).to(tl.float32) * of_merged
            tl.store(out + at + i * channels, found, mask)
            of_gates += tl.where(k == i, tl.sum(tl.sum(g * (value - merged), 1), 0), 0.0)
            of_scales += tl.where(k == i, tl.sum(tl.sum(of_merged * value, 1), 0), 0.0)
    own = sums + 2 * part * branches + k
    tl.store(own, of_gates, k < branches)
    tl.store(own + branches, of_scales, k < branches)
