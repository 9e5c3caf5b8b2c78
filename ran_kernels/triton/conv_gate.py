"""Triton kernel of `ran_kernels.conv_gate`: a matrix product with the gate in its epilogue.

Both layouts are one product, out = left @ right, whose rows lie apart in memory and whose columns
are neighbours. channels_last: positions × channels = x @ weightᵀ, the batch being more positions.
contiguous: channels × positions = weight @ x, for each sample.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, memory_format_of
from .common import device_of, sigmoid, unit_of, widen

# Rows of tiles that are gone through before the next column of tiles: they share their columns'
# operand in the L2 cache, and all of them together fit beside it.
GROUP = tl.constexpr(8)
# Tiles that keep a GPU of about 140 multiprocessors busy. As in tiling.py no property of the GPU at
# hand, so that the sums are the same on all.
ENOUGH_TILES = 256


@dataclass(frozen=True)
class Tile:
    """What one program computes, and with what."""

    rows: int
    columns: int
    inner: int  # channels of x at a time
    warps: int
    stages: int  # such steps in flight


# From large to small, by bytes of an element. A large tile reads the operands less often, small
# ones are more programs. All fit in the 99 KB of shared memory that the smallest of these GPUs has.
TILES = {
    2: (Tile(128, 128, 32, 8, 4), Tile(64, 128, 32, 4, 4), Tile(64, 64, 64, 4, 4)),
    4: (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3)),
    8: (Tile(32, 32, 16, 4, 2),),
}


@triton.jit
def conv_gate_kernel(
    left, right, bias, trunk, out,
    rows, columns, right_sample, right_step, row_tiles, column_tiles,
    INNER: tl.constexpr, UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles = row_tiles * column_tiles
    # 64-bit before it is multiplied: a tensor may have more than 2**31 elements.
    sample = (program // tiles).to(tl.int64)
    program = (program % tiles).to(tl.int64)
    first = program // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    program = program % (GROUP * column_tiles)
    row = (first + program % height) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program // height) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_INNER)
    columns = columns // UNIT * UNIT  # the compiler learns how many it may read at once
    left += row[:, None] * INNER + k[None, :]
    right += sample * right_sample
    if CHANNELS_LAST:
        right += column[None, :] * INNER + k[:, None]
    else:
        right += k.to(tl.int64)[:, None] * columns + column[None, :]
    WIDE: tl.constexpr = tl.float64 if left.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), WIDE)
    # The bounds are constants: the loop is pipelined, and every interpreter takes it.
    for start in tl.range(0, INNER, BLOCK_INNER, num_stages=STAGES):
        inside = k < INNER - start
        a = tl.load(left, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        b = tl.load(right, mask=inside[:, None] & (column < columns)[None, :], other=0.0)
        if WIDEN:
            a, b = widen(a), widen(b)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=WIDE)
        left += BLOCK_INNER
        right += right_step
    if bias is not None:
        if CHANNELS_LAST:
            total += widen(tl.load(bias + column, mask=column < columns, other=0.0))[None, :]
        else:
            total += widen(tl.load(bias + row, mask=row < rows, other=0.0))[:, None]
    at = sample * rows * columns + row[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    t = widen(tl.load(trunk + at, mask=inside, other=0.0))
    mask = sigmoid(total)
    result = (1.0 + mask) * t if RESIDUAL else mask * t
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def precision_of(x: Tensor) -> str:
    """How products of float32 are made, "tf32" or "ieee": as PyTorch's matrix products are.

    The other dtypes have one way only.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and x.dtype == torch.float32 else "ieee"


def choose_tile(samples: int, rows: int, columns: int, element_size: int) -> Tile:
    """The largest tile that is not half empty and makes enough programs, else the smallest."""
    for tile in TILES[element_size]:
        programs = samples * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        fills = 2 * rows > tile.rows and 2 * columns > tile.columns
        if fills and programs >= ENOUGH_TILES:
            break
    return tile


def plan(x: Tensor, out: Tensor) -> tuple[tuple[int], dict[str, int | bool]]:
    """The grid, and the arguments that follow from shapes and layout alone."""
    channels_last = memory_format_of(out) == torch.channels_last
    n, out_channels, height, width = out.shape
    positions, inner = height * width, x.shape[1]
    if channels_last:
        samples, rows, columns = 1, n * positions, out_channels
    else:
        samples, rows, columns = n, out_channels, positions
    tile = choose_tile(samples, rows, columns, x.element_size())
    row_tiles, column_tiles = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    return (samples * row_tiles * column_tiles,), {
        "rows": rows,
        "columns": columns,
        "right_sample": 0 if channels_last else inner * positions,
        "right_step": tile.inner if channels_last else tile.inner * positions,
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
        "INNER": inner,
        "UNIT": unit_of(columns),
        "CHANNELS_LAST": channels_last,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_INNER": tile.inner,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
    }


def conv_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, trunk: Tensor, residual: bool
) -> Tensor:
    """Implements ``ran::conv_gate.triton``."""
    trunk = dense_layout(trunk)
    out = torch.empty_like(trunk)
    if out.numel():
        x = x.contiguous(memory_format=memory_format_of(trunk))
        weight = weight.contiguous()
        grid, arguments = plan(x, out)
        operands = (x, weight) if arguments["CHANNELS_LAST"] else (weight, x)
        with device_of(x):
            conv_gate_kernel[grid](
                *operands,
                None if bias is None else bias.contiguous(),
                trunk,
                out,
                RESIDUAL=residual,
                PRECISION=precision_of(x),
                # The interpreter keeps bfloat16 as integers, and would multiply those.
                WIDEN=not x.is_cuda,
                **arguments,
            )
    return out
