"""Triton kernels of CBAM's three backward passes: `ran_kernels.cbam_backward`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, in_layout_of
from .common import accumulator, contiguous, device_of, gate, widen
from .tiling import (
    Tiling,
    locate,
    over_channels,
    over_positions,
    partial_results,
    pointwise,
    tile,
)


@triton.jit
def cbam_grad_spatial_kernel(
    grad, x, channel_logits, spatial_logits, out, grad_spatial, masked, split_stride,
    rows, columns, row_blocks, splits, chunk,
    FINAL: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, position, split = locate(row_blocks, splits, BLOCK_ROWS)
    begin = split * chunk
    end = tl.minimum(begin + chunk, columns)
    total = widen(tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), x.dtype.element_ty))
    while begin < end:
        channel = begin + tl.arange(0, BLOCK_COLUMNS)
        at, inside = tile(sample, position, channel, rows, columns, UNIT, COLUMNS_INSIDE)
        g = tl.load(grad + at, mask=inside, other=0.0)
        if out is not None:
            # Where the ReLU's result is a NaN, the gradient passes.
            g = tl.where(widen(tl.load(out + at, mask=inside, other=0.0)) <= 0.0, 0.0, g)
            tl.store(masked + at, g, mask=inside)
        product = widen(g) * widen(tl.load(x + at, mask=inside, other=0.0))
        if channel_logits is not None:
            product *= gate(channel_logits + sample * columns, channel, columns)[None, :]
        total += product
        begin += BLOCK_COLUMNS
    # grad_spatial = ss (1 - ss) sum over C of g x sc
    result = tl.sum(total, axis=1)
    to = sample * rows + position
    if FINAL:
        ss = gate(spatial_logits + sample * rows, position, rows)
        result *= ss * (1.0 - ss)
    result = result.to(grad_spatial.dtype.element_ty)
    tl.store(grad_spatial + split * split_stride + to, result, mask=position < rows)


@triton.jit
def incoming(
    like, grad, spatial_logits, grad_maps, spatial_index,
    sample, channel, position, at, inside, channels, positions,
):  # fmt: skip
    """G, the gradient at x sc: g ss + grad_maps[1] / C + (channel == spatial_index) grad_maps[0].

    Each term may be absent. `like` is a pointer to the kernel's data type.
    """
    if grad is not None:
        result = widen(tl.load(grad + at, mask=inside, other=0.0))
        if spatial_logits is not None:
            result *= gate(spatial_logits + sample * positions, position, positions)[None, :]
    else:
        result = widen(tl.zeros(inside.shape, like.dtype.element_ty))
    if grad_maps is not None:
        there = position < positions
        maps = grad_maps + sample * 2 * positions + position
        to_max = widen(tl.load(maps, mask=there, other=0.0))
        to_mean = widen(tl.load(maps + positions, mask=there, other=0.0)) / channels
        winner = tl.load(spatial_index + sample * positions + position, mask=there, other=0)
        wins = channel.to(tl.int32)[:, None] == winner[None, :]
        result += to_mean[None, :] + tl.where(wins, to_max[None, :], 0.0)
    return result


@triton.jit
def cbam_grad_channel_kernel(
    grad, x, channel_logits, spatial_logits, grad_maps, spatial_index, grad_channel, split_stride,
    rows, columns, row_blocks, splits, chunk,
    FINAL: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    begin = split * chunk
    end = tl.minimum(begin + chunk, columns)
    total = widen(tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), x.dtype.element_ty))
    while begin < end:
        position = begin + tl.arange(0, BLOCK_COLUMNS)
        at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
        arrives = incoming(
            x, grad, spatial_logits, grad_maps, spatial_index,
            sample, channel, position, at, inside, rows, columns,
        )  # fmt: skip
        total += arrives * widen(tl.load(x + at, mask=inside, other=0.0))
        begin += BLOCK_COLUMNS
    # grad_channel = sc (1 - sc) sum over HW of G x
    result = tl.sum(total, axis=1)
    to = sample * rows + channel
    if FINAL:
        sc = gate(channel_logits + sample * rows, channel, rows)
        result *= sc * (1.0 - sc)
    result = result.to(grad_channel.dtype.element_ty)
    tl.store(grad_channel + split * split_stride + to, result, mask=channel < rows)


@triton.jit
def cbam_grad_finish_kernel(
    totals, logits, grad_logits, count, splits, BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    row, at, inside = partial_results(count, splits, BLOCK_SPLITS, BLOCK)
    s = gate(logits, row, count)
    result = tl.sum(tl.load(totals + at, mask=inside, other=0.0), axis=0) * (s * (1.0 - s))
    tl.store(grad_logits + row, result.to(grad_logits.dtype.element_ty), mask=row < count)


@triton.jit
def cbam_grad_x_kernel(
    grad, channel_logits, spatial_logits, grad_maps, spatial_index,
    grad_mean, grad_max, channel_index, grad_x,
    rows, columns, row_blocks, splits, chunk,
    UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    position = split * chunk + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
    # grad_x = G sc + grad_mean / HW + (position == channel_index) grad_max
    result = incoming(
        grad_x, grad, spatial_logits, grad_maps, spatial_index,
        sample, channel, position, at, inside, rows, columns,
    )  # fmt: skip
    if channel_logits is not None:
        result *= gate(channel_logits + sample * rows, channel, rows)[:, None]
    if grad_mean is not None:
        there, pooled = channel < rows, sample * rows + channel
        to_mean = widen(tl.load(grad_mean + pooled, mask=there, other=0.0)) / columns
        to_max = widen(tl.load(grad_max + pooled, mask=there, other=0.0))
        winner = tl.load(channel_index + pooled, mask=there, other=0)
        wins = position.to(tl.int32)[None, :] == winner[:, None]
        result += to_mean[:, None] + tl.where(wins, to_max[:, None], 0.0)
    tl.store(grad_x + at, result.to(grad_x.dtype.element_ty), mask=inside)


def cbam_grad_spatial(
    grad: Tensor,
    x: Tensor,
    channel_logits: Tensor | None,
    spatial_logits: Tensor,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Implements ``ran::cbam_grad_spatial.triton``: grad_spatial, and g where `out` is given."""
    x = dense_layout(x)
    masked = x.new_empty(0) if out is None else torch.empty_like(x)
    grad_spatial = x.new_empty(spatial_logits.shape)
    if not x.numel():
        return grad_spatial.zero_(), masked  # a sum over no channels
    tiling = over_channels(x)
    spatial_logits = spatial_logits.contiguous()
    with device_of(x):
        totals = _totals(tiling, grad_spatial)
        cbam_grad_spatial_kernel[tiling.grid](
            in_layout_of(grad, x),
            x,
            contiguous(channel_logits),
            spatial_logits,
            None if out is None else in_layout_of(out, x),
            totals,
            masked,
            split_stride=grad_spatial.numel(),
            FINAL=tiling.splits == 1,
            **tiling.arguments(),
        )
        _finish(tiling, totals, spatial_logits, grad_spatial)
    return grad_spatial, masked


def cbam_grad_channel(
    grad: Tensor | None,
    x: Tensor,
    channel_logits: Tensor,
    spatial_logits: Tensor | None,
    grad_maps: Tensor | None,
    spatial_index: Tensor | None,
) -> Tensor:
    """Implements ``ran::cbam_grad_channel.triton``."""
    x = dense_layout(x)
    grad_channel = x.new_empty(channel_logits.shape)
    if not x.numel():
        return grad_channel.zero_()  # a sum over no positions
    tiling = over_positions(x)
    channel_logits = channel_logits.contiguous()
    with device_of(x):
        totals = _totals(tiling, grad_channel)
        cbam_grad_channel_kernel[tiling.grid](
            None if grad is None else in_layout_of(grad, x),
            x,
            channel_logits,
            *map(contiguous, (spatial_logits, grad_maps, spatial_index)),
            totals,
            split_stride=grad_channel.numel(),
            FINAL=tiling.splits == 1,
            **tiling.arguments(),
        )
        _finish(tiling, totals, channel_logits, grad_channel)
    return grad_channel


def cbam_grad_x(
    x: Tensor,
    grad: Tensor | None,
    channel_logits: Tensor | None,
    spatial_logits: Tensor | None,
    grad_maps: Tensor | None,
    spatial_index: Tensor | None,
    grad_mean: Tensor | None,
    grad_max: Tensor | None,
    channel_index: Tensor | None,
) -> Tensor:
    """Implements ``ran::cbam_grad_x.triton``. Of x, shape, dtype and layout alone count."""
    x = dense_layout(x)
    grad_x = torch.empty_like(x)
    if x.numel():
        tiling = pointwise(x)
        small = (channel_logits, spatial_logits, grad_maps, spatial_index)
        with device_of(x):
            cbam_grad_x_kernel[tiling.grid](
                None if grad is None else in_layout_of(grad, x),
                *map(contiguous, (*small, grad_mean, grad_max, channel_index)),
                grad_x,
                **tiling.arguments(),
            )
    return grad_x


def _totals(tiling: Tiling, grad_logits: Tensor) -> Tensor:
    """Where the first stage writes: the result itself unless rows are shared among programs."""
    if tiling.splits == 1:
        return grad_logits
    return accumulator(grad_logits, (tiling.splits, grad_logits.numel()))


def _finish(tiling: Tiling, totals: Tensor, logits: Tensor, grad_logits: Tensor) -> None:
    """The second stage, where rows are shared: adds up and multiplies by s (1 - s)."""
    if tiling.splits > 1:
        grid, arguments = tiling.finish(logits.numel())
        cbam_grad_finish_kernel[grid](totals, logits, grad_logits, **arguments)
