"""The Triton kernel behind `channel_pool` and `spatial_pool`: mean and maximum of every row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulator, device_of, gate, widen
from .tiling import Tiling, locate, partial_results, tile


@triton.jit
def first_maximum(value, index, AXIS: tl.constexpr):
    """The maximum along AXIS and the smallest index that has it. NaN is greater than any number."""
    nan = value != value
    has_nan = tl.max(nan.to(tl.int32), axis=AXIS) > 0
    maximum = tl.max(tl.where(nan, float("-inf"), value), axis=AXIS)
    wins = tl.where(tl.expand_dims(has_nan, AXIS), nan, value == tl.expand_dims(maximum, AXIS))
    first = tl.min(tl.where(wins, index, 2**31 - 1), axis=AXIS)
    return tl.where(has_nan, float("nan"), maximum), first


@triton.jit
def pool_kernel(
    x, column_logits, mean, maximum, index, sample_stride, split_stride,
    rows, columns, row_blocks, splits, chunk,
    FINAL: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, row, split = locate(row_blocks, splits, BLOCK_ROWS)
    begin = split * chunk
    end = tl.minimum(begin + chunk, columns)
    # One running sum, maximum and index for each place of the tile: the columns that come to a
    # place ascend, so `>` keeps the first. Places that see no more than -inf keep where they start.
    total = widen(tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), x.dtype.element_ty))
    best = total - float("inf")
    start = (begin + tl.arange(0, BLOCK_COLUMNS)).to(tl.int32)
    best_at = tl.broadcast_to(start[None, :], (BLOCK_ROWS, BLOCK_COLUMNS))
    while begin < end:
        column = begin + tl.arange(0, BLOCK_COLUMNS)
        at, inside = tile(sample, row, column, rows, columns, UNIT, COLUMNS_INSIDE)
        value = widen(tl.load(x + at, mask=inside, other=0.0))
        if column_logits is not None:
            value *= gate(column_logits + sample * columns, column, columns)[None, :]
        total += value
        # Written so that a NaN is taken and then never given up.
        better = inside & ((value > best) | ((value != value) & (best == best)))
        best = tl.where(better, value, best)
        best_at = tl.where(better, column.to(tl.int32)[None, :], best_at)
        begin += BLOCK_COLUMNS
    result = tl.sum(total, axis=1)
    if FINAL:
        result = result / columns
    best, best_at = first_maximum(best, best_at, 1)
    to = split * split_stride + row
    to_sample = to + sample * sample_stride
    tl.store(mean + to_sample, result.to(mean.dtype.element_ty), mask=row < rows)
    tl.store(maximum + to_sample, best.to(maximum.dtype.element_ty), mask=row < rows)
    tl.store(index + to + sample * rows, best_at, mask=row < rows)


@triton.jit
def pool_finish_kernel(
    totals, maxima, indices, mean, maximum, index, sample_stride, rows, columns, count, splits,
    BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = partial_results(count, splits, BLOCK_SPLITS, BLOCK)
    total = tl.sum(tl.load(totals + at, mask=inside, other=0.0), axis=0)
    best, best_at = first_maximum(
        tl.load(maxima + at, mask=inside, other=float("-inf")),
        tl.load(indices + at, mask=inside, other=2**31 - 1),
        0,
    )
    to = row // rows * sample_stride + row % rows
    tl.store(mean + to, (total / columns).to(mean.dtype.element_ty), mask=row < count)
    tl.store(maximum + to, best.to(maximum.dtype.element_ty), mask=row < count)
    tl.store(index + row, best_at, mask=row < count)


def pool(
    x: Tensor,
    column_logits: Tensor | None,
    tiling: Tiling,
    mean: Tensor,
    maximum: Tensor,
    index: Tensor,
) -> None:
    """Fills `mean`, `maximum` and `index`, each (samples, rows), from x gated by column.

    `mean` and `maximum` may have any one stride between samples, `index` is contiguous.
    """
    sample_stride = mean.stride(0)
    count, splits = tiling.samples * tiling.rows, tiling.splits
    results = mean, maximum, index
    with device_of(x):
        if splits == 1:
            pool_kernel[tiling.grid](
                x, column_logits, *results, sample_stride, 0, FINAL=True, **tiling.arguments()
            )
            return
        totals = accumulator(x, (splits, count))
        maxima = torch.empty_like(totals)
        indices = index.new_empty((splits, count))
        pool_kernel[tiling.grid](
            *(x, column_logits, totals, maxima, indices, tiling.rows, count),
            FINAL=False,
            **tiling.arguments(),
        )
        grid, arguments = tiling.finish(count)
        pool_finish_kernel[grid](
            *(totals, maxima, indices, *results, sample_stride, tiling.rows, tiling.columns),
            **arguments,
        )
