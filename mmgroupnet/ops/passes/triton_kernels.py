"""Kernels of lean training on GPUs, in Triton; :mod:`mmgroupnet.ops.passes.triton_passes` launches them.

A map ``(N, K*C, H, W)`` in channels_last is a matrix of pixels and channels. A kernel works on tiles of it: it reads
what it needs once, computes in float32, and writes its result once. Where branches are convolved one by one, each has a
matrix of its own, ``(K, pixels, C)``.

y are the sums of a convolution, and ``r = max(y, 0)``, or y without ``RELU``. A batch norm has ``norm_channels``, which
branches may share: channel c is its channel ``c % norm_channels``. Scales and gates may be expanded: they come with the
step from one value to the next one. Sizes make no kernels of their own, but for whether the channels are a multiple of
16: then a thread reads 16 bytes at once.
"""

from collections.abc import Callable

import triton
import triton.language as tl

# Pixels and channels of a tile.
TILE = (32, 64)
# Parts of a sum that the second kernel of a sum takes at once.
PARTS = 16

# Surrogate gradients of which the sign's gradient has the formula; of others it is given the values.
POLYNOMIAL, CLIPPED_IDENTITY, SWISH, TANH, GIVEN = range(5)
_POLYNOMIAL, _CLIPPED_IDENTITY = tl.constexpr(POLYNOMIAL), tl.constexpr(CLIPPED_IDENTITY)
_SWISH, _TANH = tl.constexpr(SWISH), tl.constexpr(TANH)

# Arguments by which Triton would compile a kernel again, where they are 1 or a multiple of 16.
_SIZES = {
    *('pixels', 'count', 'parts', 'branches', 'first', 'norm_channels', 'rows', 'columns', 'row_padding'),
    *('column_padding', 'border', 'taps', 'in_channels', 'channel_step', 'tap_step', 'source_channel_step'),
    *('source_tap_step', 'scale_step', 'gate_step', 'scales_step'),
}
# Arguments whose addresses need not be multiples of 16 bytes: vectors, which are small.
_VECTORS = {
    *('mean', 'inverse', 'scale', 'shift', 'weight', 'bias', 'running_mean', 'running_var', 'tracked', 'partial'),
    *('p', 'q', 's', 'of_weight', 'of_bias', 'gate', 'scales', 'sums'),
}


def _kernel(function: Callable) -> Callable:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes, vectors = ([name for name in names if name in kind] for kind in (_SIZES, _VECTORS))
    return triton.jit(do_not_specialize=sizes, do_not_specialize_on_alignment=vectors)(function)


@triton.jit
def _tile(channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pixels and channels of a program: programs that run at one time read pixels next to each other. They are counted
    along the first axis of the grid, which alone may be longer than 65,535."""
    tiles = (channels + BLOCK_C - 1) // BLOCK_C
    p = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    return p, tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _at_least_zero(value):
    """``max(value, 0)``; not-a-number stays what it is."""
    return tl.where(value < 0, 0.0, value)


@triton.jit
def _load_sums(y, offsets, mask, RELU: tl.constexpr):
    """r as float32."""
    value = tl.load(y + offsets, mask, other=0).to(tl.float32)
    if RELU:
        value = _at_least_zero(value)
    return value


@triton.jit
def _inside_of_border(p, rows, columns, row_padding, column_padding):
    """Where the pixels of images with a border lie in those without it, and which of them do."""
    width = columns + 2 * column_padding
    height = rows + 2 * row_padding
    column = p % width - column_padding
    row = p // width % height - row_padding
    is_inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return (p // (width * height) * rows + row) * columns + column, is_inside


@triton.jit
def _signs_with_border(value, is_inside, border):
    """-1 and +1 inside, zeros are +1; the border's value around them."""
    return tl.where(is_inside[:, None], tl.where(value >= 0, 1.0, -1.0), border.to(tl.float32))


@_kernel
def moments_kernel(
    y, out, pixels, channels, parts, RELU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Means of r, and sums of squares around them, of each part of the pixels: ``(2, parts, channels)``.

    Squares are taken around the first value that a part sees, so that nothing cancels where values lie together, far
    from zero.
    """
    part = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_channel = c < channels
    pivot = _load_sums(y, (part * BLOCK_P).to(tl.int64) * channels + c, has_channel, RELU)
    total = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    squares = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    count = 0
    for start in range(part * BLOCK_P, pixels, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & has_channel[None, :]
        value = _load_sums(y, p.to(tl.int64)[:, None] * channels + c[None, :], mask, RELU)
        value = tl.where(mask, value - pivot[None, :], 0.0)
        total += value
        squares += value * value
        count += tl.minimum(pixels - start, BLOCK_P)
    mean = tl.sum(total, 0) / count
    rest = tl.maximum(tl.sum(squares, 0) - count * mean * mean, 0.0)
    tl.store(out + part * channels + c, pivot + mean, has_channel)
    tl.store(out + (parts + part) * channels + c, rest, has_channel)


@triton.jit
def _pixels_of_parts(part, pixels, parts, BLOCK_P: tl.constexpr):
    """How many pixels a part has; parts take tiles in turns."""
    tiles = (pixels + BLOCK_P - 1) // BLOCK_P
    own = (tiles - part + parts - 1) // parts
    has_last = (tiles - 1) % parts == part
    found = own * BLOCK_P - tl.where(has_last, tiles * BLOCK_P - pixels, 0)
    return tl.where(part < parts, found, 0).to(tl.float32)


@_kernel
def statistics_kernel(
    partial,
    scale,
    weight,
    bias,
    running_mean,
    running_var,
    tracked,
    mean_out,
    inverse_out,
    factor_out,
    shift_out,
    pixels,
    parts,
    branches,
    norm_channels,
    scale_step,
    eps,
    momentum,
    USES_BATCH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MOVES: tl.constexpr,
    COUNTS: tl.constexpr,
    IS_CUMULATIVE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Statistics of ``scale * r`` from the moments of parts (or the running ones), and what the norm does with r.

    Writes mean and inverse deviation of each channel of the norm, and the factor and shift of r, per folded channel;
    moves the running statistics.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < norm_channels
    alpha = tl.load(scale + c * scale_step, mask, other=0).to(tl.float32)
    channels = branches * norm_channels
    if USES_BATCH:
        count = (pixels * branches).to(tl.float32)
        weighted = tl.full((BLOCK_G, BLOCK_C), 0.0, tl.float32)
        for b in range(branches):
            for start in range(0, parts, BLOCK_G):
                g = start + tl.arange(0, BLOCK_G)
                at = g[:, None] * channels + b * norm_channels + c[None, :]
                inside = (g < parts)[:, None] & mask[None, :]
                of_part = _pixels_of_parts(g, pixels, parts, BLOCK_P)
                weighted += of_part[:, None] * tl.load(partial + at, inside, other=0)
        mean = tl.sum(weighted, 0) / count
        squares = tl.full((BLOCK_G, BLOCK_C), 0.0, tl.float32)
        for b in range(branches):
            for start in range(0, parts, BLOCK_G):
                g = start + tl.arange(0, BLOCK_G)
                at = g[:, None] * channels + b * norm_channels + c[None, :]
                inside = (g < parts)[:, None] & mask[None, :]
                of_part = _pixels_of_parts(g, pixels, parts, BLOCK_P)
                away = tl.where(inside, tl.load(partial + at, inside, other=0) - mean[None, :], 0.0)
                squares += of_part[:, None] * away * away
                squares += tl.load(partial + parts * channels + at, inside, other=0)
        mean = alpha * mean
        variance = alpha * alpha * (tl.sum(squares, 0) / count)
        if MOVES:
            factor = momentum
            if IS_CUMULATIVE:
                factor = 1.0 / tl.load(tracked).to(tl.float32)
            if COUNTS:
                if tl.program_id(0) == 0:
                    tl.store(tracked, tl.load(tracked) + 1)
            unbiased = variance * (count / tl.maximum(count - 1.0, 1.0))
            before = tl.load(running_mean + c, mask, other=0).to(tl.float32)
            tl.store(running_mean + c, before + factor * (mean - before), mask)
            before = tl.load(running_var + c, mask, other=0).to(tl.float32)
            tl.store(running_var + c, before + factor * (unbiased - before), mask)
    else:
        mean = tl.load(running_mean + c, mask, other=0).to(tl.float32)
        variance = tl.load(running_var + c, mask, other=1).to(tl.float32)
    inverse = 1.0 / tl.sqrt(variance + eps)
    tl.store(mean_out + c, mean, mask)
    tl.store(inverse_out + c, inverse, mask)
    factor_of_x = inverse
    if HAS_WEIGHT:
        factor_of_x = inverse * tl.load(weight + c, mask, other=0).to(tl.float32)
    shift_of_x = -factor_of_x * mean
    if HAS_BIAS:
        shift_of_x += tl.load(bias + c, mask, other=0).to(tl.float32)
    for b in range(branches):
        tl.store(factor_out + b * norm_channels + c, factor_of_x * alpha, mask)
        tl.store(shift_out + b * norm_channels + c, shift_of_x, mask)


@_kernel
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
    """``scale * r + shift + residual``; with ``HAS_SIGNS`` the signs of that, too, as the signs' kernel makes them.

    Then ``pixels`` are those of images with the border.
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
    value = _load_sums(y, at, mask, RELU) * factor[None, :] + term[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask, other=0).to(tl.float32)
    # As it is read again: rounding may make a zero of a small number.
    value = value.to(out.dtype.element_ty)
    tl.store(out + at, value, mask)
    if HAS_SIGNS:
        own = (branch * pixels + p)[:, None] * channels + c[None, :]
        tl.store(signs + own, _signs_with_border(value, is_inside, border), is_pixel[:, None] & has_channel[None, :])


@_kernel
def gradient_sums_kernel(
    gradient,
    y,
    mean,
    inverse,
    scale,
    out,
    pixels,
    channels,
    parts,
    norm_channels,
    scale_step,
    RELU: tl.constexpr,
    IS_NORMED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g and of g * r over each part of the pixels, ``(2, parts, channels)``; with ``IS_NORMED`` of g and of g
    times the normed ``scale * r``, which does not cancel where the mean is large."""
    part = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_channel = c < channels
    if IS_NORMED:
        centre = tl.load(mean + c % norm_channels, has_channel, other=0)
        slope = tl.load(inverse + c % norm_channels, has_channel, other=0)
        alpha = tl.load(scale + c % norm_channels * scale_step, has_channel, other=0).to(tl.float32)
    total = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    products = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    for start in range(part * BLOCK_P, pixels, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & has_channel[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        g = tl.load(gradient + at, mask, other=0).to(tl.float32)
        value = _load_sums(y, at, mask, RELU)
        if IS_NORMED:
            value = (alpha[None, :] * value - centre[None, :]) * slope[None, :]
        total += g
        products += g * value
    tl.store(out + part * channels + c, tl.sum(total, 0), has_channel)
    tl.store(out + (parts + part) * channels + c, tl.sum(products, 0), has_channel)


@_kernel
def norm_gradient_kernel(
    partial,
    mean,
    inverse,
    scale,
    weight,
    of_weight,
    of_bias,
    p,
    q,
    s,
    pixels,
    parts,
    branches,
    norm_channels,
    scale_step,
    USES_BATCH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of a norm's weight and bias from sums over parts, and p, q and s of the gradient ``p * g + q * r + s``
    of y, per folded channel."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < norm_channels
    channels = branches * norm_channels
    total = tl.full((BLOCK_G, BLOCK_C), 0.0, tl.float32)
    products = tl.full((BLOCK_G, BLOCK_C), 0.0, tl.float32)
    for b in range(branches):
        for start in range(0, parts, BLOCK_G):
            g = start + tl.arange(0, BLOCK_G)
            at = g[:, None] * channels + b * norm_channels + c[None, :]
            inside = (g < parts)[:, None] & mask[None, :]
            total += tl.load(partial + at, inside, other=0)
            products += tl.load(partial + parts * channels + at, inside, other=0)
    sum_g = tl.sum(total, 0)
    sum_g_x = tl.sum(products, 0)
    tl.store(of_weight + c, sum_g_x, mask)
    tl.store(of_bias + c, sum_g, mask)
    rho = tl.load(inverse + c, mask, other=0)
    alpha = tl.load(scale + c * scale_step, mask, other=0).to(tl.float32)
    of_gradient = rho * alpha
    if HAS_WEIGHT:
        of_gradient *= tl.load(weight + c, mask, other=0).to(tl.float32)
    of_r = tl.full((BLOCK_C,), 0.0, tl.float32)
    term = tl.full((BLOCK_C,), 0.0, tl.float32)
    if USES_BATCH:
        count = (pixels * branches).to(tl.float32)
        slope = rho * sum_g_x / count
        of_r = -of_gradient * slope * alpha
        term = of_gradient * (tl.load(mean + c, mask, other=0) * slope - sum_g / count)
    for b in range(branches):
        at = b * norm_channels + c
        tl.store(p + at, of_gradient, mask)
        tl.store(q + at, of_r, mask)
        tl.store(s + at, term, mask)


@_kernel
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


@_kernel
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

    ``pixels`` are those of the output, ``rows`` and ``columns`` those of an image of the input.
    """
    branch = tl.program_id(1)
    p, c = _tile(channels, BLOCK_P, BLOCK_C)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    source, is_inside = _inside_of_border(p, rows, columns, row_padding, column_padding)
    at = source[:, None] * (branches * channels) + (first + branch) * channels + c[None, :]
    value = tl.load(x + at, mask & is_inside[:, None], other=0)
    own = (branch * pixels + p)[:, None] * channels + c[None, :]
    tl.store(out + own, _signs_with_border(value, is_inside, border), mask)


@_kernel
def weight_signs_kernel(weight, out, count, taps, in_channels, channel_step, tap_step, BLOCK: tl.constexpr):
    """Signs of latent weights, in the order (row, tap, channel) of channels_last.

    The steps are those from a channel or tap to the next one in the latent weights.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = at % in_channels
    tap = at // in_channels % taps
    row = at // (in_channels * taps)
    source = row * (in_channels * taps) + channel * channel_step + tap * tap_step
    value = tl.load(weight + source, at < count, other=0)
    tl.store(out + at, tl.where(value >= 0, 1.0, -1.0), at < count)


@_kernel
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
    """Gradients of latent weights: those of the scaled signs, one tensor a base, divided by the scales.

    ``count`` are the weights of one base; steps as for the signs of weights.
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


@_kernel
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

    ``pixels`` are those of x, ``rows`` and ``columns`` those of an image of it. With ``SURROGATE`` = GIVEN ``factors``
    are the values of the surrogate gradient, else they are not read.
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
        slope = _at_least_zero(2.0 - 2.0 * tl.abs(z))
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


@_kernel
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
    """``m + gate[i] * (x_i - m)`` of all branches, with ``m = sum_j scales[j] * x_j``; signs as for the affine map."""
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


@_kernel
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
    """Gradient of the connection in x, and the parts of those in gate and scales, ``(parts, 2, branches)``."""
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
