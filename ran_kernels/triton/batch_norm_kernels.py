"""The Triton kernels of batch normalisation's passes, which batch_norm_parts.py defines."""

import triton
import triton.language as tl

from .common import widen
from .tiling import elements_before, first_tile, locate, next_tile, partial_results, tile


@triton.jit
def inverse_deviation(variance, channel, channels, EPS: tl.constexpr):
    """1 / √(variance + eps), for channel below channels."""
    return 1.0 / tl.sqrt(tl.load(variance + channel, mask=channel < channels, other=1.0) + EPS)


@triton.jit
def channel_factors(mean, variance, weight, bias, channel, channels, EPS: tl.constexpr):
    """Mean, inverse deviation, and with the weight that times it, and bias, of each channel."""
    there = channel < channels
    invstd = inverse_deviation(variance, channel, channels, EPS)
    scale = invstd
    if weight is not None:
        scale = invstd * tl.load(weight + channel, mask=there, other=0.0)
    center = tl.load(mean + channel, mask=there, other=0.0)
    offset = tl.zeros_like(invstd)
    if bias is not None:
        offset = tl.load(bias + channel, mask=there, other=0.0)
    return center, invstd, scale, offset


@triton.jit
def factors(mean, variance, weight, bias, channel, channels, EPS: tl.constexpr):
    """`channel_factors`, each (rows, 1)."""
    center, invstd, scale, offset = channel_factors(
        mean, variance, weight, bias, channel, channels, EPS
    )
    return center[:, None], invstd[:, None], scale[:, None], offset[:, None]


@triton.jit
def normalise(x, center, scale, offset):
    """What a shortcut, the ReLU and rounding are still to come of. Every pass that needs its sign
    calls this, and the compiler is left no choice of how to round it."""
    return tl.fma(x - center, scale, offset)


@triton.jit
def passing(g, result, ABOVE: tl.constexpr):
    """g where the ReLU's result is not at most ABOVE: a NaN lets it through."""
    return tl.where(result <= ABOVE, 0.0, g)


@triton.jit
def element(x, addend, at, inside):
    """x or x + addend, as it is stored."""
    value = tl.load(x + at, mask=inside, other=0.0)
    if addend is not None:
        value = widen(value) + widen(tl.load(addend + at, mask=inside, other=0.0))
        value = value.to(x.dtype.element_ty)
    return value


@triton.jit
def batch_norm_statistics_kernel(
    x, addend, sum, mean, variance,
    rows, columns, row_blocks, splits, chunk, tiles, all_tiles,
    FINAL: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    _, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    sample, begin, left = first_tile(split, chunk, all_tiles, tiles, BLOCK_COLUMNS)
    # Deviations are from the mean of the channel's first tile: a mean far from 0 costs no digits.
    first = begin + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, first, rows, columns, UNIT, COLUMNS_INSIDE)
    some = tl.minimum(columns - begin, BLOCK_COLUMNS)
    origin = tl.sum(widen(element(x, addend, at, inside)), axis=1)[:, None] / some
    origin = tl.where(origin - origin == 0.0, origin, 0.0)  # unless it is no number
    # For each place of the tile the sum of those that came, and their squared deviations from
    # their mean (Youngs and Cramer 1971); for each column how many came.
    total = widen(tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), x.dtype.element_ty))
    squares = total
    came = widen(tl.zeros((BLOCK_COLUMNS,), x.dtype.element_ty))
    while left > 0:
        column = begin + tl.arange(0, BLOCK_COLUMNS)
        at, inside = tile(sample, channel, column, rows, columns, UNIT, COLUMNS_INSIDE)
        value = element(x, addend, at, inside)
        if addend is not None:
            tl.store(sum + at, value, mask=inside)
        deviation = tl.where(inside, widen(value) - origin, 0.0)
        there = column < columns
        came += tl.where(there, 1.0, 0.0)
        total += deviation
        # In explicit fmas: a sum has the statistics, to the bit, that it would have by itself.
        apart = tl.fma(deviation, came[None, :], -total)
        share = tl.where(there & (came > 1.0), 1.0 / tl.maximum(came * (came - 1.0), 1.0), 0.0)
        squares = tl.fma(apart * share[None, :], apart, squares)
        sample, begin = next_tile(sample, begin, columns, BLOCK_COLUMNS)
        left -= 1
    # The places together (Chan et al. 1979).
    count = tl.sum(came, axis=0)
    center = tl.sum(total, axis=1) / count
    apart = total - came[None, :] * center[:, None]
    result = tl.sum(squares + apart * apart / tl.maximum(came, 1.0)[None, :], axis=1)
    if FINAL:
        result = result / count
    # A part's mean is kept in float64: rounded, it would be off by much of what parts are apart.
    center = tl.sum(origin, axis=1).to(tl.float64) + center
    to = split * rows + channel
    tl.store(mean + to, center.to(mean.dtype.element_ty), mask=channel < rows)
    tl.store(variance + to, result, mask=channel < rows)


@triton.jit
def batch_norm_statistics_finish_kernel(
    means, squares, mean, variance,
    count, columns, splits, chunk, tiles, all_tiles,
    BLOCK_COLUMNS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel, at, inside = partial_results(count, splits, BLOCK_SPLITS, BLOCK)
    first = tl.arange(0, BLOCK_SPLITS).to(tl.int64) * chunk
    begin, end = tl.minimum(first, all_tiles), tl.minimum(first + chunk, all_tiles)
    share = elements_before(end, tiles, columns, BLOCK_COLUMNS)
    share -= elements_before(begin, tiles, columns, BLOCK_COLUMNS)
    share = share.to(tl.float64)
    elements = tl.sum(share, axis=0)
    part = tl.load(means + at, mask=inside, other=0.0)
    result = tl.sum(part * share[:, None], axis=0) / elements
    apart = part - result[None, :]
    deviations = tl.load(squares + at, mask=inside, other=0.0) + apart * apart * share[:, None]
    spread = tl.sum(deviations, axis=0) / elements
    tl.store(mean + channel, result.to(mean.dtype.element_ty), mask=channel < count)
    tl.store(variance + channel, spread.to(variance.dtype.element_ty), mask=channel < count)


@triton.jit
def batch_norm_apply_kernel(
    x, shortcut, mean, variance, weight, bias, out,
    rows, columns, row_blocks, splits, chunk,
    EPS: tl.constexpr, RELU: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    position = split * chunk + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
    center, _, scale, offset = factors(mean, variance, weight, bias, channel, rows, EPS)
    result = normalise(widen(tl.load(x + at, mask=inside)), center, scale, offset)
    if shortcut is not None:
        result += widen(tl.load(shortcut + at, mask=inside))
    if RELU:
        result = tl.where(result <= 0.0, 0.0, result)  # a NaN stays one
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def batch_norm_reduce_kernel(
    grad, x, out, mean, variance, weight, bias, masked, sum_grad, sum_grad_xhat,
    rows, columns, row_blocks, splits, chunk, tiles, all_tiles,
    FINAL: tl.constexpr, EPS: tl.constexpr, RELU: tl.constexpr, VANISHES: tl.constexpr,
    UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    _, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    sample, begin, left = first_tile(split, chunk, all_tiles, tiles, BLOCK_COLUMNS)
    center, _, scale, offset = factors(mean, variance, weight, bias, channel, rows, EPS)
    # sum_grad = Σ g and, without invstd so far, sum_grad_xhat = Σ g (x - mean)
    total = widen(tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), x.dtype.element_ty))
    dot = total
    while left > 0:
        column = begin + tl.arange(0, BLOCK_COLUMNS)
        at, inside = tile(sample, channel, column, rows, columns, UNIT, COLUMNS_INSIDE)
        g = widen(tl.load(grad + at, mask=inside, other=0.0))
        value = widen(tl.load(x + at, mask=inside, other=0.0))
        if out is not None:
            g = passing(g, widen(tl.load(out + at, mask=inside, other=0.0)), 0.0)
            tl.store(masked + at, g.to(masked.dtype.element_ty), mask=inside)
        elif RELU:
            g = passing(g, normalise(value, center, scale, offset), VANISHES)
        total += g
        dot += g * tl.where(inside, value - center, 0.0)
        sample, begin = next_tile(sample, begin, columns, BLOCK_COLUMNS)
        left -= 1
    to = split * rows + channel
    tl.store(sum_grad + to, tl.sum(total, axis=1), mask=channel < rows)
    result = tl.sum(dot, axis=1)
    if FINAL:
        result *= inverse_deviation(variance, channel, rows, EPS)
    tl.store(sum_grad_xhat + to, result, mask=channel < rows)


@triton.jit
def batch_norm_reduce_finish_kernel(
    totals, dots, variance, sum_grad, sum_grad_xhat, count, splits,
    EPS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel, at, inside = partial_results(count, splits, BLOCK_SPLITS, BLOCK)
    total = tl.sum(tl.load(totals + at, mask=inside, other=0.0).to(tl.float64), axis=0)
    tl.store(sum_grad + channel, total.to(sum_grad.dtype.element_ty), mask=channel < count)
    dot = tl.sum(tl.load(dots + at, mask=inside, other=0.0).to(tl.float64), axis=0)
    dot *= inverse_deviation(variance, channel, count, EPS)
    tl.store(sum_grad_xhat + channel, dot.to(sum_grad.dtype.element_ty), mask=channel < count)


@triton.jit
def batch_norm_grad_kernel(
    grad, x, addend, mean, variance, weight, bias, sum_grad, sum_grad_xhat, grad_x, elements,
    rows, columns, row_blocks, splits, chunk,
    EPS: tl.constexpr, RELU: tl.constexpr, VANISHES: tl.constexpr, UNIT: tl.constexpr,
    COLUMNS_INSIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    position = split * chunk + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
    center, invstd, scale, offset = factors(mean, variance, weight, bias, channel, rows, EPS)
    g = widen(tl.load(grad + at, mask=inside))
    # What is 0 times an infinity of x stays out where the statistics do not depend on x.
    if RELU or sum_grad is not None:
        value = widen(tl.load(x + at, mask=inside))
        if RELU:
            g = passing(g, normalise(value, center, scale, offset), VANISHES)
        if sum_grad is not None:
            # grad_x = scale (g - (sum_grad + (x - mean) invstd sum_grad_xhat) / count)
            there = channel < rows
            mean_grad = tl.load(sum_grad + channel, mask=there, other=0.0) / elements
            slope = tl.load(sum_grad_xhat + channel, mask=there, other=0.0) / elements
            g -= mean_grad[:, None] + (value - center) * (slope[:, None] * invstd)
    result = g * scale
    if addend is not None:
        result += widen(tl.load(addend + at, mask=inside))
    tl.store(grad_x + at, result.to(grad_x.dtype.element_ty), mask=inside)
