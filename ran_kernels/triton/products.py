"""What the kernels that multiply matrices share: tiles, which of them a shape takes, precision."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """What one program computes, and with what."""

    rows: int
    columns: int
    inner: int  # what is summed over, at a time
    warps: int
    stages: int  # such steps in flight


@dataclass(frozen=True)
class Problem:
    """A product (rows, inner) × (inner, columns) and what is beside it."""

    kind: str  # which kernel makes it
    rows: int
    columns: int
    inner: int
    element_size: int  # bytes
    images: int = 1  # (rows, columns) that the epilogue reads or writes
    numbers: int = 0  # (columns,) that the epilogue holds
    splits: bool = False  # whether programs share what is summed over, of transposed rows
    exact: bool = False  # of float32, without tensor cores
    wide: bool = False  # what is normalised while it is loaded is float32, the rest 16 bits

    @property
    def operand_sizes(self) -> tuple[int, int]:
        """Bytes of an element of what has rows, and of what has columns."""
        if not self.wide:
            return self.element_size, self.element_size
        return (self.element_size, 4) if self.splits else (4, self.element_size)


#: From large to small, by bytes of an element. What `tiles_of` a product is fits in LEAST_SHARED.
TILES = {
    2: (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 64, 8, 3),
        Tile(128, 64, 32, 8, 4),
        Tile(64, 128, 32, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(32, 64, 64, 4, 4),
    ),
    4: (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3)),
    8: (Tile(32, 32, 16, 4, 2),),
}

#: Where images are not read and written in packs of PACK bytes: each element is a load of its own
#: then, whose address and condition are registers, and a thread has room for few.
UNPACKED_TILES = {
    2: (Tile(128, 64, 32, 8, 4), Tile(64, 64, 32, 8, 4), Tile(32, 64, 32, 4, 4)),
    4: (Tile(64, 64, 32, 8, 3), Tile(32, 64, 32, 8, 3)),
    8: TILES[8],
}
PACK = 16

#: Bytes of shared memory that a program has on the smallest of these GPUs.
LEAST_SHARED = 99 * 1024

# The GPU of the model is an H100 whatever GPU is at hand: tiles, and so the order of sums, are the
# same on all, but where they were measured (tuned.py).
MULTIPROCESSORS = 132
SHARED = 227 * 1024  # bytes of a multiprocessor
THREADS = 2048  # of a multiprocessor
REGISTERS = 65536
MOST_REGISTERS = 255  # of a thread
MOST_SPLIT = 128 * 128 * 32  # multiply-adds of a step whose operands pass through registers
BANDWIDTH = 3.0e12  # bytes a second from memory
L2_BANDWIDTH = 5.5e12
LATENCY = 0.8e-6  # seconds from asking memory to having
# Of products that several programs share: enough to keep a GPU of about 140 multiprocessors busy,
# what each sums at least, and as many as there may be.
ENOUGH_PROGRAMS = 512
LEAST_STEPS = 8
MOST_SPLITS = 256
#: What the model cannot tell apart.
TIE = 1.05
#: Of tensor cores, multiply-adds a second and two: by bytes of an element; float64 is exact.
PEAK = {2: 800e12, 4: 400e12, 8: 60e12}
#: Share of it that a tile reaches, by the smaller of its sides: narrow products read more operands
#: from shared memory for each result.
REACHED = {32: 0.25, 64: 0.45, 128: 0.65}


def step_bytes(problem: Problem, tile: Tile) -> int:
    """Of both operands, what is loaded at a time."""
    of_rows, of_columns = problem.operand_sizes
    return (tile.rows * of_rows + tile.columns * of_columns) * tile.inner


def tiles_of(problem: Problem) -> list[Tile]:
    """Those that `problem` can take on every GPU, from large to small: their steps fit in shared
    memory, and nothing that a thread holds is spilled, which a test compiles them for."""
    *tiles, smallest = (TILES if is_packed(problem) else UNPACKED_TILES)[problem.element_size]
    return [
        *(tile for tile in tiles if fits_shared(problem, tile) and has_registers(problem, tile)),
        smallest,
    ]


def fits_shared(problem: Problem, tile: Tile) -> bool:
    """Whether the steps in flight fit in LEAST_SHARED."""
    return step_bytes(problem, tile) * tile.stages <= LEAST_SHARED


def has_registers(problem: Problem, tile: Tile) -> bool:
    """Whether a thread can hold what the kernel gives it."""
    if problem.exact and problem.splits and tile.rows > 32:
        return False  # without tensor cores a transposed operand lies in registers, a whole step
    if problem.splits and tile.rows * tile.columns * tile.inner > MOST_SPLIT:
        return False  # operands pass through registers, one normalised, beside the accumulator
    if problem.wide and not is_packed(problem) and tile.rows > 64:
        return False  # loads of single elements, of twice the bytes
    return registers(problem, tile) <= MOST_REGISTERS


def is_packed(problem: Problem) -> bool:
    """Whether the channels of every image are packs of PACK bytes."""
    channels = (problem.columns, problem.rows if problem.splits else problem.inner)
    return all(count * problem.element_size % PACK == 0 for count in channels)


def registers(problem: Problem, tile: Tile) -> int:
    """Of a thread, about: the accumulator, an image beside it, the epilogue's numbers of a quarter
    of the columns, which is what the layout of tensor cores gives to each thread, and addresses."""
    accumulator = tile.rows * tile.columns // (32 * tile.warps)
    accumulator *= problem.element_size // 8 + 1  # float64 takes two
    beside = min(problem.images - 1, 1) * accumulator
    return accumulator + beside + problem.numbers * tile.columns // 4 + 80


def splits_of(problem: Problem, tile: Tile) -> tuple[int, int]:
    """How many programs share what a tile sums over, and steps of each: a power of two, as each
    number of them is compiled by itself."""
    tiles = triton.cdiv(problem.rows, tile.rows) * triton.cdiv(problem.columns, tile.columns)
    blocks = triton.cdiv(problem.inner, tile.inner)
    splits = max(1, min(ENOUGH_PROGRAMS // tiles, blocks // LEAST_STEPS, MOST_SPLITS))
    steps = triton.next_power_of_2(triton.cdiv(blocks, splits))
    return triton.cdiv(blocks, steps), steps


def estimate(problem: Problem, tile: Tile) -> float:
    """Seconds that the product takes with `tile`, by the model that chooses among TILES.

    The slowest of: memory, each operand once, at the rate that the bytes in flight allow (Little's
    law); the L2 cache, which gives the operands again to every tile; and the tensor cores on whole
    tiles. The last wave of programs counts as a full one.
    """
    size = problem.element_size
    row_tiles = triton.cdiv(problem.rows, tile.rows)
    column_tiles = triton.cdiv(problem.columns, tile.columns)
    steps, splits = triton.cdiv(problem.inner, tile.inner), 1
    if problem.splits:
        splits, steps = splits_of(problem, tile)
    programs = row_tiles * column_tiles * splits
    step = step_bytes(problem, tile)
    threads = 32 * tile.warps
    held = min(registers(problem, tile), MOST_REGISTERS)
    resident = min(SHARED // (step * tile.stages), THREADS // threads, REGISTERS // threads // held)
    slots = MULTIPROCESSORS * resident
    quantised = triton.cdiv(programs, slots) * slots / programs if programs > slots else 1.0
    of_rows, of_columns = problem.operand_sizes
    moved = (of_rows * problem.rows + of_columns * problem.columns) * problem.inner
    moved += size * problem.images * problem.rows * problem.columns
    moved += 8 * (splits - 1) * problem.rows * problem.columns  # float32, written and read
    in_flight = min(programs, slots) * step * (tile.stages - 1)
    memory = moved / min(BANDWIDTH, in_flight / LATENCY)
    cache = programs * step * steps / L2_BANDWIDTH
    whole = programs * tile.rows * tile.columns * steps * tile.inner
    share = REACHED[min(tile.rows, tile.columns)] * min(1.0, programs / MULTIPROCESSORS)
    products = 2 * whole / (PEAK[size] * share)
    return max(memory, cache, products) * quantised


def choose(problem: Problem) -> Tile:
    """The largest tile of `tiles_of` it that is not half empty and whose `estimate` is within TIE
    of the least, or the smallest."""
    *tiles, smallest = tiles_of(problem)
    fitting = [
        tile
        for tile in tiles
        if 2 * problem.rows > tile.rows and 2 * problem.columns > tile.columns
    ]
    fitting.append(smallest)
    seconds = [estimate(problem, tile) for tile in fitting]
    return next(tile for tile, s in zip(fitting, seconds, strict=True) if s <= TIE * min(seconds))


def convolution_precision(dtype: torch.dtype) -> str:
    """How products of float32 are made, "tf32" or "ieee": as PyTorch's convolutions are.

    The other dtypes have one way only.
    """
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if allowed and dtype == torch.float32 else "ieee"


def precision_of(x: Tensor) -> str:
    """As `convolution_precision`, but as PyTorch's matrix products are."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed and x.dtype == torch.float32 else "ieee"
