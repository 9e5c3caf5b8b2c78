"""How launches reach memory, counted for tensors as large as networks have them.

A few blocks of each grid, evenly spread, run on memory that holds zeros and takes no space; their
counts stand for the whole grid. The watching build is needed: ``Emulator(build.kernels("race"))``.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any

from .launchers import LAUNCHERS
from .library import SPREAD, Emulator, Launch

SECTOR = 32
#: An H100: multiprocessors, and what each of them holds.
MULTIPROCESSORS = 132
REGISTERS = 65536
SHARED_BYTES = 227 * 1024
MOST_THREADS = 2048
MOST_BLOCKS = 32
#: Registers are given to a warp in units of this many.
REGISTER_UNIT = 256
WIDTHS = (1, 2, 4, 8, 16)

_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class Side:
    """What loads, or stores, ask for."""

    bytes: float
    sectors: float
    requests: float
    distinct_sectors: float
    by_width: tuple[float, ...]


@dataclass(frozen=True)
class Counted:
    """A launch and the accesses of its whole grid."""

    launch: Launch
    load: Side
    store: Side
    shared_requests: float
    wavefronts: float


def count(
    emulator: Emulator,
    name: str,
    dtype: int,
    sizes: dict[str, int],
    *,
    absent: tuple[str, ...] = (),
    blocks: int = 12,
) -> list[Counted]:
    """The launches that a launcher makes, each with its counts.

    Args:
        absent: buffers that are null pointers.
        blocks: how many of each grid run.
    """
    launcher = LAUNCHERS[name]
    numbers = launcher.sizes(sizes)
    places: list[int | None] = []
    end = _ALIGNMENT
    spans = [0 if key in absent else launcher.bytes(key, dtype, sizes) for key in launcher.buffers]
    emulator.configure()
    if launcher.workspace:
        spans.append(emulator.workspace(name, dtype, numbers))
    for span in spans:
        places.append(end if span else None)
        end += -(-span // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
    memory = emulator.c.reserve(end)
    if memory is None:
        raise MemoryError(f"{name}: no address space for {end} bytes")
    aligned = -(-memory // _ALIGNMENT) * _ALIGNMENT - _ALIGNMENT
    buffers = [None if place is None else aligned + place for place in places]
    try:
        emulator.configure(blocks=blocks, sample=SPREAD)
        emulator.c.count(1)
        error = emulator.launch(name, dtype, numbers, buffers)
        if error or emulator.findings():
            raise RuntimeError(f"{name}: returned {error}; {emulator.findings()}")
        return [_counted(emulator, index, made) for index, made in enumerate(emulator.launches())]
    finally:
        emulator.c.count(0)
        emulator.c.release(memory, end)


def _counted(emulator: Emulator, index: int, launch: Launch) -> Counted:
    values = (ctypes.c_uint64 * (2 * (4 + len(WIDTHS)) + 2))()
    emulator.c.counts(index, values)
    share = launch.blocks / launch.blocks_run
    scaled = [value * share for value in values]
    width = 4 + len(WIDTHS)
    load, store = (_side(scaled[at : at + width]) for at in (0, width))
    return Counted(launch, load, store, scaled[-2], scaled[-1])


def _side(values: list[float]) -> Side:
    return Side(values[0], values[1], values[2], values[3], tuple(values[4:]))


def least_bytes(name: str, dtype: int, sizes: dict[str, int], absent: tuple[str, ...] = ()) -> int:
    """Every argument read once, every result written once."""
    launcher = LAUNCHERS[name]
    return sum(launcher.bytes(key, dtype, sizes) for key in launcher.buffers if key not in absent)


def waves(launch: Launch, resources: dict[str, Any]) -> float:
    """How often the grid fills an H100, by the registers and the shared memory of its kernel."""
    used = resources.get(f"{launch.kernel}, sm_90")
    registers, shared = (used["registers"], used["shared_bytes"]) if used else (32, 0)
    warps = math.ceil(launch.threads / 32)
    of_block = warps * math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    fitting = min(
        MOST_BLOCKS,
        MOST_THREADS // launch.threads,
        REGISTERS // of_block,
        SHARED_BYTES // (launch.shared_bytes + shared + 1024),  # the system takes 1 kB of each
    )
    return launch.blocks / (MULTIPROCESSORS * max(1, fitting))


def figures(counted: list[Counted], least: int, resources: dict[str, Any]) -> dict[str, float]:
    """What a launcher's accesses cost, each figure the better the lower.

    asked     bytes that instructions ask for, over the least
    touched   bytes of the sectors that blocks touch, each block by itself, over the least
    load      bytes of the sectors that loads touch, each request by itself, over bytes asked for
    store     the same of stores
    banks     cycles of shared memory for a request, 1 without conflicts
    waves     of blocks, in the launch that asks for most, on an H100
    launches  how many there are
    """
    loaded, stored = (sum(c.load.bytes for c in counted), sum(c.store.bytes for c in counted))
    touched = sum(c.load.distinct_sectors + c.store.distinct_sectors for c in counted)
    requests = sum(c.shared_requests for c in counted)
    largest = max(counted, key=lambda c: c.load.bytes + c.store.bytes)
    return {
        "asked": round((loaded + stored) / least, 3),
        "touched": round(touched * SECTOR / least, 3),
        "load": round(sum(c.load.sectors for c in counted) * SECTOR / max(loaded, 1), 3),
        "store": round(sum(c.store.sectors for c in counted) * SECTOR / max(stored, 1), 3),
        "banks": round(sum(c.wavefronts for c in counted) / max(requests, 1), 3),
        "waves": round(waves(largest.launch, resources), 3),
        "launches": len(counted),
    }
