"""The Triton kernels of 1×1 convolutions that normalise while they load, on channels_last images.

An image is a matrix, positions × channels, and a convolution a product of it: y = a convᵀ with conv
(O, K) and a = relu(xhat weight + bias), which no memory ever holds. A program computes one tile of
a result; the tiles of one row of tiles are neighbours in the grid, so that the big operand is read
from memory once and from the L2 cache after that.

A 3×3 convolution stays cuDNN's. As an implicit product with this prologue it would read, for each
of nine taps, the tile of positions shifted by a row or a column: the norm would be computed nine
times in registers, or once in shared memory, of a tile and its border, which Triton cannot address
by shifted rows yet (Gluon and CUDA C++ can). What pads is 0 after the ReLU, so a mask per tap, and
not the norm of 0. It would save a unit the pass of `batch_norm_relu`, 1/2 S of its 16 S, and
another 1/2 S where activations are computed again, and has to come up to cuDNN's 3×3 first.

What is summed over positions, statistics and gradients of the channels' numbers, leaves a program
as one number a channel, and `merge_kernel` and `add_kernel` put GROUP of them together, level by
level: the same bits every run.
"""

import triton
import triton.language as tl

from .batch_norm_kernels import channel_factors, inverse_deviation, normalise, passing
from .common import sigmoid, widen

#: Parts that one program of a level puts together.
GROUP = tl.constexpr(64)


@triton.jit
def tile_of(column_tiles, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """This program's row of tiles, rows and columns, in 64 bits: they will be multiplied."""
    program = tl.program_id(0)
    tile = (program // column_tiles).to(tl.int64)
    row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % column_tiles).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    return tile, row, column


@triton.jit
def read_at(row, height, width, out_height, out_width, STRIDE: tl.constexpr):
    """The position of the input that the output's position `row` is computed from."""
    if STRIDE != 1:
        line = row // out_width  # a sample's positions may not fit in 32 bits
        sample = line // out_height
        y = line - sample * out_height
        row = (sample * height + y * STRIDE) * width + (row - line * out_width) * STRIDE
    return row


@triton.jit
def used_by(row, height, width, out_height, out_width, STRIDE: tl.constexpr):
    """The position of the output that is computed from the input's `row`, and whether one is."""
    is_used = row >= 0
    if STRIDE != 1:
        line = row // width
        sample = line // height
        y = line - sample * height
        x = row - line * width
        is_used = (y % STRIDE == 0) & (x % STRIDE == 0)
        row = (sample * out_height + y // STRIDE) * out_width + x // STRIDE
    return row, is_used


@triton.jit
def row_factors(mean, variance, weight, bias, channel, channels, EPS: tl.constexpr):
    """`channel_factors`, each (1, channels)."""
    center, invstd, scale, offset = channel_factors(
        mean, variance, weight, bias, channel, channels, EPS
    )
    return center[None, :], invstd[None, :], scale[None, :], offset[None, :]


@triton.jit
def activation(x, center, scale, offset):
    """relu of the norm of x, in the type that is computed in; a NaN stays one."""
    result = normalise(widen(x), center, scale, offset)
    return tl.where(result <= 0.0, 0.0, result)


@triton.jit
def norm_relu_conv_kernel(
    x, mean, variance, weight, bias, conv, conv_bias, addend, trunk, grad,
    y, grad_trunk, means, squares,
    rows, column_tiles, height, width, out_height, out_width,
    EPS: tl.constexpr, MEASURE: tl.constexpr, RESIDUAL: tl.constexpr,
    INNER: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, column = tile_of(column_tiles, BLOCK_ROWS, BLOCK_COLUMNS)
    source = read_at(row, height, width, out_height, out_width, STRIDE)
    k = tl.arange(0, BLOCK_INNER)
    left = x + source[:, None] * INNER + k[None, :]
    right = conv + column[None, :] * INNER + k[:, None]
    there = (row < rows)[:, None]
    wanted = (column < COLUMNS)[None, :]
    WIDE: tl.constexpr = tl.float64 if conv.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), WIDE)
    for start in tl.range(0, INNER, BLOCK_INNER, num_stages=STAGES):
        inside = k < INNER - start
        a = tl.load(left, mask=there & inside[None, :], other=0.0)
        b = tl.load(right, mask=inside[:, None] & wanted, other=0.0)
        if mean is not None:
            channel = start + k.to(tl.int64)
            center, _, scale, offset = row_factors(
                mean, variance, weight, bias, channel, INNER, EPS
            )
            a = activation(a, center, scale, offset).to(conv.dtype.element_ty)
        if WIDEN:
            a, b = widen(a), widen(b)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=WIDE)
        left += BLOCK_INNER
        right += BLOCK_INNER
    at = row[:, None] * COLUMNS + column[None, :]
    inside = there & wanted
    if conv_bias is not None:
        total += widen(tl.load(conv_bias + column, mask=column < COLUMNS, other=0.0))[None, :]
    if addend is not None:
        total += widen(tl.load(addend + at, mask=inside, other=0.0))
    if trunk is not None:
        t = widen(tl.load(trunk + at, mask=inside, other=0.0))
        mask = sigmoid(total)
        factor = 1.0 + mask if RESIDUAL else mask
        if grad is None:
            total = factor * t
        else:
            # d out / d total = T M (1 - M);  d out / d T = (1 +) M
            g = widen(tl.load(grad + at, mask=inside, other=0.0))
            to_trunk = (g * factor).to(grad_trunk.dtype.element_ty)
            tl.store(grad_trunk + at, to_trunk, mask=inside)
            total = g * t * (mask * (1.0 - mask))
    stored = total.to(y.dtype.element_ty)
    tl.store(y + at, stored, mask=inside)
    if MEASURE:
        # Of the values as they are stored. Deviations are from their mean as it is rounded, and
        # what that is off by is a second number: a mean far from 0 costs no digits.
        value = widen(stored)
        count = tl.minimum(rows - tile * BLOCK_ROWS, BLOCK_ROWS).to(WIDE)
        origin = tl.sum(tl.where(there, value, 0.0), axis=0) / count
        origin = tl.where(origin - origin == 0.0, origin, 0.0)  # unless it is no number
        deviation = tl.where(there, value - origin[None, :], 0.0)
        off = tl.sum(deviation, axis=0) / count
        apart = tl.where(there, deviation - off[None, :], 0.0)
        to = tile * COLUMNS + column
        center = origin.to(tl.float64) + off
        tl.store(means + to, center.to(means.dtype.element_ty), mask=column < COLUMNS)
        tl.store(squares + to, tl.sum(apart * apart, axis=0), mask=column < COLUMNS)


@triton.jit
def data_gradient(
    grad, conv, row, rows, column, height, width, out_height, out_width,
    INNER: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of grad conv: rows are the input's positions, columns its channels."""
    source, used = used_by(row, height, width, out_height, out_width, STRIDE)
    k = tl.arange(0, BLOCK_INNER)
    left = grad + source[:, None] * INNER + k[None, :]
    right = conv + k[:, None] * COLUMNS + column[None, :]
    there = (used & (row < rows))[:, None]
    wanted = (column < COLUMNS)[None, :]
    WIDE: tl.constexpr = tl.float64 if conv.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), WIDE)
    for start in tl.range(0, INNER, BLOCK_INNER, num_stages=STAGES):
        inside = k < INNER - start
        a = tl.load(left, mask=there & inside[None, :], other=0.0)
        b = tl.load(right, mask=inside[:, None] & wanted, other=0.0)
        if WIDEN:
            a, b = widen(a), widen(b)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=WIDE)
        left += BLOCK_INNER
        right += BLOCK_INNER * COLUMNS
    return tl.where(there, total, 0.0)  # and not 0 times an infinity of the weight


@triton.jit
def norm_relu_conv_reduce_kernel(
    grad, x, mean, variance, weight, bias, conv, masked, parts,
    rows, column_tiles, height, width, out_height, out_width,
    EPS: tl.constexpr, VANISHES: tl.constexpr,
    INNER: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, column = tile_of(column_tiles, BLOCK_ROWS, BLOCK_COLUMNS)
    g = data_gradient(
        grad, conv, row, rows, column, height, width, out_height, out_width,
        INNER, COLUMNS, STRIDE, PRECISION, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER, STAGES,
    )  # fmt: skip
    center, _, scale, offset = row_factors(mean, variance, weight, bias, column, COLUMNS, EPS)
    at = row[:, None] * COLUMNS + column[None, :]
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    value = widen(tl.load(x + at, mask=inside, other=0.0))
    g = passing(g, normalise(value, center, scale, offset), VANISHES)
    if masked is not None:
        tl.store(masked + at, g.to(masked.dtype.element_ty), mask=inside)
    # Side by side, and without invstd so far: Σ g and Σ g (x - mean).
    to = tile * (2 * COLUMNS) + column
    total = tl.sum(tl.where(inside, g, 0.0), axis=0)
    tl.store(parts + to, total, mask=column < COLUMNS)
    dot = tl.sum(tl.where(inside, g * (value - center), 0.0), axis=0)
    tl.store(parts + to + COLUMNS, dot, mask=column < COLUMNS)


@triton.jit
def norm_relu_conv_grad_kernel(
    grad, x, addend, mean, variance, weight, bias, sum_grad, sum_grad_xhat, conv, grad_x,
    elements, rows, column_tiles, height, width, out_height, out_width,
    EPS: tl.constexpr, VANISHES: tl.constexpr,
    INNER: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    _, row, column = tile_of(column_tiles, BLOCK_ROWS, BLOCK_COLUMNS)
    g = data_gradient(
        grad, conv, row, rows, column, height, width, out_height, out_width,
        INNER, COLUMNS, STRIDE, PRECISION, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER, STAGES,
    )  # fmt: skip
    at = row[:, None] * COLUMNS + column[None, :]
    there = column < COLUMNS
    inside = (row < rows)[:, None] & there[None, :]
    if mean is not None:
        center, invstd, scale, offset = row_factors(
            mean, variance, weight, bias, column, COLUMNS, EPS
        )
        value = widen(tl.load(x + at, mask=inside, other=0.0))
        g = passing(g, normalise(value, center, scale, offset), VANISHES)
        if sum_grad is not None:
            # grad_x = scale (g - (sum_grad + (x - mean) invstd sum_grad_xhat) / count)
            mean_grad = tl.load(sum_grad + column, mask=there, other=0.0) / elements
            slope = tl.load(sum_grad_xhat + column, mask=there, other=0.0) / elements
            g -= mean_grad[None, :] + (value - center) * (slope[None, :] * invstd)
        g = g * scale
    if addend is not None:
        g += widen(tl.load(addend + at, mask=inside, other=0.0))
    tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def norm_relu_conv_weight_kernel(
    grad, x, mean, variance, weight, bias, parts,
    rows, column_tiles, height, width, out_height, out_width,
    EPS: tl.constexpr, OUT: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr, STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    # One tile of gradᵀ a, (O, K), over STEPS blocks of positions.
    program = tl.program_id(0)
    row_tiles = (OUT + BLOCK_ROWS - 1) // BLOCK_ROWS
    split = (program // (row_tiles * column_tiles)).to(tl.int64)
    program = program % (row_tiles * column_tiles)
    out = (program // column_tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % column_tiles).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    there = (out < OUT)[None, :]
    wanted = (column < COLUMNS)[None, :]
    if mean is not None:
        center, _, scale, offset = row_factors(mean, variance, weight, bias, column, COLUMNS, EPS)
    row = split * (STEPS * BLOCK_INNER) + tl.arange(0, BLOCK_INNER)
    WIDE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), WIDE)
    for _step in tl.range(0, STEPS, num_stages=STAGES):
        inside = (row < rows)[:, None]
        source = read_at(row, height, width, out_height, out_width, STRIDE)
        g = tl.load(grad + row[:, None] * OUT + out[None, :], mask=inside & there, other=0.0)
        at = source[:, None] * COLUMNS + column[None, :]
        a = tl.load(x + at, mask=inside & wanted, other=0.0)
        if mean is not None:
            # Past the end 0, and not what the norm makes of 0.
            a = tl.where(inside, activation(a, center, scale, offset), 0.0)
            a = a.to(grad.dtype.element_ty)
        if WIDEN:
            g, a = widen(g), widen(a)
        total = tl.dot(tl.trans(g), a, total, input_precision=PRECISION, out_dtype=WIDE)
        row += BLOCK_INNER
    at = (split * OUT + out[:, None]) * COLUMNS + column[None, :]
    tl.store(parts + at, total.to(parts.dtype.element_ty), mask=(out < OUT)[:, None] & wanted)


@triton.jit
def group_of(parts, columns, BLOCK: tl.constexpr):
    """Of one level of the sums: this program's group, its parts (GROUP,), its columns, where they
    lie (GROUP, BLOCK), which of them exist."""
    blocks = (columns + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    group = (program // blocks).to(tl.int64)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    part = group * GROUP + tl.arange(0, GROUP)
    inside = (part < parts)[:, None] & (column < columns)[None, :]
    return group, part, column, part[:, None] * columns + column[None, :], inside


@triton.jit
def merge_kernel(
    means, squares, mean, variance, parts, columns, rows, part_rows,
    FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means and squared deviations of `part_rows` rows each together (Chan et al. 1979)."""
    group, part, column, at, inside = group_of(parts, columns, BLOCK)
    share = tl.minimum(tl.maximum(rows - part * part_rows, 0), part_rows).to(tl.float64)
    elements = tl.sum(share, axis=0)
    of_part = tl.load(means + at, mask=inside, other=0.0)
    center = tl.sum(of_part * share[:, None], axis=0) / elements
    apart = tl.where(inside, of_part - center[None, :], 0.0)
    deviations = tl.load(squares + at, mask=inside, other=0.0) + apart * apart * share[:, None]
    result = tl.sum(deviations, axis=0)
    if FINAL:
        result = result / elements
    to = group * columns + column
    tl.store(mean + to, center.to(mean.dtype.element_ty), mask=column < columns)
    tl.store(variance + to, result.to(variance.dtype.element_ty), mask=column < columns)


@triton.jit
def add_kernel(
    parts_of, out, second, variance, parts, columns, EPS: tl.constexpr, BLOCK: tl.constexpr
):
    """Parts added up. With `second`, what lies side by side is taken apart: the second half goes
    there, times the inverse deviation."""
    group, _, column, at, inside = group_of(parts, columns, BLOCK)
    total = tl.sum(tl.load(parts_of + at, mask=inside, other=0.0).to(tl.float64), axis=0)
    there = column < columns
    if second is not None:
        half = columns // 2
        column -= half
        is_second = there & (column >= 0)
        scaled = total * inverse_deviation(variance, tl.maximum(column, 0), half, EPS)
        tl.store(second + column, scaled.to(second.dtype.element_ty), mask=is_second)
        column += half
        there = column < half
    tl.store(out + group * columns + column, total.to(out.dtype.element_ty), mask=there)
