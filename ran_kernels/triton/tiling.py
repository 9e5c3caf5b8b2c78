"""How kernels on (N, C, H, W) share a tensor out: layouts, tiles and splits, decided in this place.

Each sample is taken as a matrix. Its rows are what a kernel keeps and its columns what it sums
over: channels × positions for channel_pool, positions × channels for spatial_pool. The layout
decides which of the two are neighbours in memory. A program holds a tile of BLOCK_ROWS ×
BLOCK_COLUMNS and walks it along `chunk` columns; where too few programs would run for a big GPU,
several share the columns of a row and a second kernel puts their results together. Sums over the
batch, too, walk one sample's tiles after the other's.

The walk is a `while`: the interpreter of Triton 3.6 takes none of its own integers as bounds of a
`range`. Compiled, it is the same code.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .common import unit_of

# Neighbours in memory that a tile takes of each line: 256 bytes in 16 bits, whole cache lines,
# and few lanes idle on maps of 56, 28, 14 and 7 squared.
INNER = 128
# Of each big tensor in a tile. 4 warps of 32 threads, each with 2 loads of 16 bytes in flight where
# running sums, maxima and their indices, or many numbers of each channel, need registers beside
# them, and 4 loads where nothing does.
REDUCTION_BYTES = 4096
POINTWISE_BYTES = 8192
# Programs that keep a GPU of about 140 multiprocessors busy. It is no property of the GPU at hand:
# the sums, and so their last bits, are the same on all.
ENOUGH_PROGRAMS = 1024
# Tiles a program walks at least before its row is shared: fewer take less than a second launch.
LEAST_TILES = 8
MOST_SPLITS = 32
# Of sums over the batch, where rows are channels: there are few, and they are long.
LEAST_BATCH_TILES = 4
MOST_BATCH_SPLITS = 512
# Rows that a program of the second stage puts together, and parts of them in all.
FINISH_ROWS = 32
FINISH_PARTS = 4096


@dataclass(frozen=True)
class Tiling:
    """The work of one launch. Nothing in it depends on values or on the device."""

    samples: int
    rows: int
    columns: int
    columns_inside: bool  # whether the columns of a row are neighbours in memory
    block_rows: int
    block_columns: int
    chunk: int  # columns a program walks, a multiple of block_columns
    splits: int  # programs that share a row

    @property
    def row_blocks(self) -> int:
        return triton.cdiv(self.rows, self.block_rows)

    @property
    def grid(self) -> tuple[int]:
        """Along the first axis alone, the only one with room for more than 65535."""
        return (self.samples * self.row_blocks * self.splits,)

    def arguments(self) -> dict[str, int | bool]:
        """What every kernel here ends its arguments with."""
        inner = self.columns if self.columns_inside else self.rows
        return {
            "rows": self.rows,
            "columns": self.columns,
            "row_blocks": self.row_blocks,
            "splits": self.splits,
            "chunk": self.chunk,
            "UNIT": unit_of(inner),
            "COLUMNS_INSIDE": self.columns_inside,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_COLUMNS": self.block_columns,
        }

    def finish(self, count: int) -> tuple[tuple[int], dict[str, int]]:
        """Grid and last arguments of the second stage over `count` rows, of all samples."""
        blocks = {"BLOCK_SPLITS": triton.next_power_of_2(self.splits), "BLOCK": FINISH_ROWS}
        return (triton.cdiv(count, FINISH_ROWS),), {"count": count, "splits": self.splits, **blocks}


@dataclass(frozen=True)
class BatchTiling:
    """As `Tiling`, where a row's columns in all samples are added up."""

    samples: int
    rows: int
    columns: int  # of a sample
    columns_inside: bool
    block_rows: int
    block_columns: int
    chunk: int  # tiles a program walks
    splits: int

    @property
    def row_blocks(self) -> int:
        return triton.cdiv(self.rows, self.block_rows)

    @property
    def tiles(self) -> int:
        """Of a row, in one sample."""
        return triton.cdiv(self.columns, self.block_columns)

    @property
    def grid(self) -> tuple[int]:
        return (self.row_blocks * self.splits,)

    def walk(self) -> dict[str, int]:
        """How far each program walks: for the second stage, too, where the parts' counts matter."""
        return {
            "columns": self.columns,
            "tiles": self.tiles,
            "all_tiles": self.samples * self.tiles,
            "chunk": self.chunk,
            "BLOCK_COLUMNS": self.block_columns,
        }

    def arguments(self) -> dict[str, int | bool]:
        """What every kernel of the first stage ends its arguments with."""
        inner = self.columns if self.columns_inside else self.rows
        return {
            "rows": self.rows,
            "row_blocks": self.row_blocks,
            "splits": self.splits,
            "UNIT": unit_of(inner),
            "COLUMNS_INSIDE": self.columns_inside,
            "BLOCK_ROWS": self.block_rows,
            **self.walk(),
        }

    def finish(self) -> tuple[tuple[int], dict[str, int]]:
        """Grid and last arguments of the second stage."""
        splits = triton.next_power_of_2(self.splits)
        block = min(FINISH_ROWS, FINISH_PARTS // splits)
        blocks = {"BLOCK_SPLITS": splits, "BLOCK": block, "num_warps": 8}
        return (triton.cdiv(self.rows, block),), {
            "count": self.rows,
            "splits": self.splits,
            **blocks,
        }


def pointwise(x: Tensor, tile_bytes: int = POINTWISE_BYTES) -> Tiling:
    """Channels × positions of x, a program for each tile."""
    n, c, height, width = x.shape
    inside = x.is_contiguous()
    blocks = _blocks(c, height * width, inside, tile_bytes // x.element_size())
    splits = triton.cdiv(height * width, blocks[1])
    return Tiling(n, c, height * width, inside, *blocks, chunk=blocks[1], splits=splits)


def over_positions(x: Tensor, *, merge: bool = False) -> Tiling:
    """Sums over H×W for every channel. With `merge` the batch is one sample where it can be."""
    n, c, height, width = x.shape
    inside = x.is_contiguous()
    if merge and inside:
        n, c = 1, n * c
    return _reduction(x, n, c, height * width, inside)


def over_channels(x: Tensor) -> Tiling:
    """Sums over the channels for every position."""
    n, c, height, width = x.shape
    return _reduction(x, n, height * width, c, not x.is_contiguous())


def over_batch(x: Tensor) -> BatchTiling:
    """Sums over N, H, W for every channel."""
    n, c, height, width = x.shape
    inside = x.is_contiguous()
    samples, columns = (n, height * width) if inside else (1, n * height * width)
    blocks = _blocks(c, columns, inside, REDUCTION_BYTES // x.element_size())
    tiles = samples * triton.cdiv(columns, blocks[1])
    programs = triton.cdiv(ENOUGH_PROGRAMS, triton.cdiv(c, blocks[0]))
    chunk = triton.cdiv(tiles, max(min(programs, tiles // LEAST_BATCH_TILES, MOST_BATCH_SPLITS), 1))
    return BatchTiling(
        samples, c, columns, inside, *blocks, chunk=chunk, splits=triton.cdiv(tiles, chunk)
    )


def _reduction(x: Tensor, samples: int, rows: int, columns: int, inside: bool) -> Tiling:
    block_rows, block_columns = _blocks(rows, columns, inside, REDUCTION_BYTES // x.element_size())
    programs = samples * triton.cdiv(rows, block_rows)
    tiles = triton.cdiv(columns, block_columns)
    splits = min(triton.cdiv(ENOUGH_PROGRAMS, programs), tiles // LEAST_TILES, MOST_SPLITS)
    chunk = triton.cdiv(tiles, max(splits, 1)) * block_columns
    return Tiling(
        samples,
        rows,
        columns,
        inside,
        block_rows,
        block_columns,
        chunk,
        splits=triton.cdiv(columns, chunk),
    )


def _blocks(rows: int, columns: int, columns_inside: bool, elements: int) -> tuple[int, int]:
    """Rows and columns of a tile of at most so many elements, all powers of two."""
    outer, inner = (rows, columns) if columns_inside else (columns, rows)
    outer, inner = triton.next_power_of_2(outer), triton.next_power_of_2(inner)
    block_outer = min(outer, elements // min(inner, INNER))
    block_inner = min(
        inner, elements // block_outer
    )  # more than INNER where the outer side is short
    return (block_outer, block_inner) if columns_inside else (block_inner, block_outer)


@triton.jit
def locate(row_blocks, splits, BLOCK_ROWS: tl.constexpr):
    """This program's sample, rows and share of the columns, in 64 bits: they will be multiplied."""
    program = tl.program_id(0)
    block = program // splits
    row = (block % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return (block // row_blocks).to(tl.int64), row, (program % splits).to(tl.int64)


@triton.jit
def tile(sample, row, column, rows, columns, UNIT: tl.constexpr, COLUMNS_INSIDE: tl.constexpr):
    """Where row × column of a sample lies in memory, and which of it exists."""
    # The inner size is a multiple of UNIT. Said like this, the compiler knows it and reads that
    # many elements at once; of a plain argument it learns about multiples of 16 only (not 14×14).
    if COLUMNS_INSIDE:
        columns = columns // UNIT * UNIT
        offset = row[:, None] * columns + column[None, :]
    else:
        rows = rows // UNIT * UNIT
        offset = column[None, :] * rows + row[:, None]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return sample * rows * columns + offset, inside


@triton.jit
def first_tile(split, chunk, all_tiles, tiles, BLOCK_COLUMNS: tl.constexpr):
    """Of sums over the batch: the sample and column a walk starts from, and its tiles."""
    first = split * chunk
    sample = first // tiles
    return sample, (first - sample * tiles) * BLOCK_COLUMNS, tl.minimum(chunk, all_tiles - first)


@triton.jit
def next_tile(sample, begin, columns, BLOCK_COLUMNS: tl.constexpr):
    """The tile after the one of `sample` whose first column is `begin`."""
    begin += BLOCK_COLUMNS
    past = begin >= columns
    return sample + past.to(tl.int64), tl.where(past, 0, begin)


@triton.jit
def elements_before(tile, tiles, columns, BLOCK_COLUMNS: tl.constexpr):
    """Of a row, how many lie in the batch's tiles before this one."""
    sample = tile // tiles
    return sample * columns + tl.minimum((tile - sample * tiles) * BLOCK_COLUMNS, columns)


@triton.jit
def partial_results(count, splits, BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Of the second stage: this program's rows, where their parts lie (BLOCK_SPLITS, BLOCK), which
    of them exist."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
    at = split[:, None] * count + row[None, :]
    return row, at, (split < splits)[:, None] & (row < count)[None, :]
