"""Kernels of batch norms, in Triton: sums over parts of the pixels, and the arithmetic over channels that follows.

A batch norm has ``norm_channels``, which branches may share: folded channel c uses its channel ``c % norm_channels``.
For the rest see :mod:`mmgroupnet.ops.passes.triton_kernels`.
"""

import triton
import triton.language as tl

from mmgroupnet.ops.passes.triton_kernels import kernel, load_sums

# Number of parts that the second kernel of a sum reads at once.
PARTS = 16


@kernel
def moments_kernel(y, out, pixels, channels, parts, RELU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Means of r, and sums of squares around them, of each part of the pixels: ``(2, parts, channels)``.

    Squares are taken around the first value of a part, so nothing cancels if all values are close together but far from
    zero.
    """
    part = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_channel = c < channels
    pivot = load_sums(y, (part * BLOCK_P).to(tl.int64) * channels + c, has_channel, RELU)
    total = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    squares = tl.full((BLOCK_P, BLOCK_C), 0.0, tl.float32)
    count = 0
    for start in range(part * BLOCK_P, pixels, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & has_channel[None, :]
        value = load_sums(y, p.to(tl.int64)[:, None] * channels + c[None, :], mask, RELU)
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
    """Number of pixels of a part; parts take tiles in turns."""
    tiles = (pixels + BLOCK_P - 1) // BLOCK_P
    own = (tiles - part + parts - 1) // parts
    has_last = (tiles - 1) % parts == part
    found = own * BLOCK_P - tl.where(has_last, tiles * BLOCK_P - pixels, 0)
    return tl.where(part < parts, found, 0).to(tl.float32)


@kernel
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
    """Statistics of ``scale * r`` from the moments of parts (or the running ones), and the norm's scale and shift of r.

    Writes mean and inverse deviation of each channel of the norm, and scale and shift of r per folded channel; updates
    the running statistics.
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


@kernel
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
    """Sums of g and of g * r over each part of the pixels, ``(2, parts, channels)``; with ``IS_NORMED``, of g and of g
    times the normed ``scale * r``, which does not cancel if the mean is large."""
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
        value = load_sums(y, at, mask, RELU)
        if IS_NORMED:
            value = (alpha[None, :] * value - centre[None, :]) * slope[None, :]
        total += g
        products += g * value
    tl.store(out + part * channels + c, tl.sum(total, 0), has_channel)
    tl.store(out + (parts + part) * channels + c, tl.sum(products, 0), has_channel)


@kernel
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
