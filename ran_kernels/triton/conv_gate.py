"""Triton kernel of `ran_kernels.conv_gate`: a matrix product with the gate in its epilogue.

channels_last it is a case of `norm_relu_conv`'s product, positions × channels = x @ weightᵀ, the
batch being more positions. contiguous: channels × positions = weight @ x, for each sample.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, memory_format_of
from .common import contiguous, device_of, sigmoid, unit_of, widen
from .norm_relu_conv import gated_conv
from .products import Tile, precision_of

# Rows of tiles that are gone through before the next column of tiles: they share their columns'
# operand in the L2 cache, and all of them together fit beside it.
GROUP = tl.constexpr(8)
# Tiles that keep a GPU of about 140 multiprocessors busy. As in tiling.py no property of the GPU at
# hand, so that the sums are the same on all.
ENOUGH_TILES = 256


#: Bytes: rows of 14×14 are such packs in 16 bits.
PACK = 8

# From large to small, by bytes of an element. A large tile reads the operands less often, small
# ones are more programs. All fit in the 99 KB of shared memory that the smallest of these GPUs has.
TILES = {
    2: (Tile(128, 128, 32, 8, 4), Tile(64, 128, 32, 4, 4), Tile(64, 64, 64, 4, 4)),
    4: (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3)),
    8: (Tile(32, 32, 16, 4, 2),),
}


@triton.jit
def conv_gate_kernel(
    weight, x, bias, trunk, out, rows, columns, row_tiles, column_tiles,
    INNER: tl.constexpr, UNIT: tl.constexpr,
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
    left = weight + row[:, None] * INNER + k[None, :]
    right = x + (sample * INNER + k[:, None]) * columns + column[None, :]
    step = tl.full((), BLOCK_INNER, tl.int64) * columns
    WIDE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
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
        right += step
    if bias is not None:
        total += widen(tl.load(bias + row, mask=row < rows, other=0.0))[:, None]
    at = sample * rows * columns + row[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    t = widen(tl.load(trunk + at, mask=inside, other=0.0))
    mask = sigmoid(total)
    result = (1.0 + mask) * t if RESIDUAL else mask * t
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def choose_tile(samples: int, rows: int, columns: int, inner: int, element_size: int) -> Tile:
    """The largest tile that is not half empty and makes enough programs, else the smallest.

    The smallest, too, where rows in memory are no packs of PACK bytes, as of 7×7: it alone has
    registers for as many loads.
    """
    tiles = TILES[element_size]
    packed = all(count * element_size % PACK == 0 for count in (columns, inner))
    for tile in tiles if packed else tiles[-1:]:
        programs = samples * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        fills = 2 * rows > tile.rows and 2 * columns > tile.columns
        if fills and programs >= ENOUGH_TILES:
            break
    return tile


def plan(x: Tensor, out: Tensor) -> tuple[tuple[int], dict[str, int | bool]]:
    """The grid, and the arguments that follow from shapes and layout alone."""
    samples, rows, height, width = out.shape
    columns = height * width
    tile = choose_tile(samples, rows, columns, x.shape[1], x.element_size())
    row_tiles, column_tiles = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    return (samples * row_tiles * column_tiles,), {
        "rows": rows,
        "columns": columns,
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
        "INNER": x.shape[1],
        "UNIT": unit_of(columns),
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
        if memory_format_of(trunk) == torch.channels_last:
            return gated_conv(x, weight, bias, trunk, residual)
        grid, arguments = plan(x, out)
        with device_of(x):
            conv_gate_kernel[grid](
                *map(contiguous, (weight, x, bias)),
                trunk,
                out,
                RESIDUAL=residual,
                PRECISION=precision_of(x),
                # The interpreter keeps bfloat16 as integers, and would multiply those.
                WIDEN=not x.is_cuda,
                **arguments,
            )
    return out
