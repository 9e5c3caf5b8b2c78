"""Triton kernel of `ran_kernels.add_affine_relu` and `ran_kernels.affine_relu`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, in_layout_of
from .common import device_of, widen
from .tiling import locate, pointwise, tile


@triton.jit
def add_affine_relu_kernel(
    a, b, scale, shift, sum, out,
    rows, columns, row_blocks, splits, chunk,
    UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, channel, split = locate(row_blocks, splits, BLOCK_ROWS)
    position = split * chunk + tl.arange(0, BLOCK_COLUMNS)
    at, inside = tile(sample, channel, position, rows, columns, UNIT, COLUMNS_INSIDE)
    value = widen(tl.load(a + at, mask=inside))
    if b is not None:
        value += widen(tl.load(b + at, mask=inside))
        tl.store(sum + at, value.to(sum.dtype.element_ty), mask=inside)
    factor = tl.load(scale + channel, mask=channel < rows, other=0.0)
    offset = tl.load(shift + channel, mask=channel < rows, other=0.0)
    result = value * factor[:, None] + offset[:, None]
    result = tl.where(result <= 0.0, 0.0, result)  # a NaN stays one
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def add_affine_relu(
    a: Tensor, b: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Implements ``ran::add_affine_relu.triton``."""
    a = dense_layout(a)
    out = torch.empty_like(a)
    sum = a.new_empty((0,)) if b is None else torch.empty_like(a)
    if out.numel():
        tiling = pointwise(a)
        with device_of(a):
            add_affine_relu_kernel[tiling.grid](
                a,
                None if b is None else in_layout_of(b, a),
                scale.contiguous(),
                shift.contiguous(),
                None if b is None else sum,
                out,
                **tiling.arguments(),
            )
    return sum, out
