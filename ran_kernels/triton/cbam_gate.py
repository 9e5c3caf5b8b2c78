"""Triton kernel of `ran_kernels.cbam_gate`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, in_layout_of
from .common import contiguous, device_of, gate, widen
from .tiling import locate, pointwise, tile


@triton.jit
def cbam_gate_kernel(
    x, channel_logits, spatial_logits, shortcut, out,
    rows, columns, row_blocks, splits, chunk,
    RELU: tl.constexpr, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    position = split * chunk + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
    result = widen(tl.load(x + at, mask=inside))
    # A sigmoid for each row and each column of the tile, not for each of its elements.
    if channel_logits is not None:
        result *= gate(channel_logits + sample * rows, channel, rows)[:, None]
    if spatial_logits is not None:
        result *= gate(spatial_logits + sample * columns, position, columns)[None, :]
    if shortcut is not None:
        result += widen(tl.load(shortcut + at, mask=inside))
    if RELU:
        result = tl.where(result <= 0.0, 0.0, result)  # a NaN stays one
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def cbam_gate(
    x: Tensor,
    channel_logits: Tensor | None,
    spatial_logits: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
) -> Tensor:
    """Implements ``ran::cbam_gate.triton``."""
    x = dense_layout(x)
    out = torch.empty_like(x)
    if out.numel():
        tiling = pointwise(x)
        with device_of(x):
            cbam_gate_kernel[tiling.grid](
                x,
                contiguous(channel_logits),
                contiguous(spatial_logits),
                None if shortcut is None else in_layout_of(shortcut, x),
                out,
                RELU=relu,
                **tiling.arguments(),
            )
    return out
