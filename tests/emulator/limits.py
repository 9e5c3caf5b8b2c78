"""Launches at extreme shapes, computed and checked against a GPU's limits without being run.

What is checked: grids, blocks and shared memory of every launch, workspaces that are not negative,
and, in the kind "narrow", casts to 32 bits.
"""

from collections.abc import Iterator

import numpy as np

from .formats import FLOAT32, NAMES
from .gates import CHANNEL, MIXED, SPATIAL, groups
from .launchers import LAUNCHERS
from .library import Emulator, Launch

#: An aligned address that nobody touches, and one that is aligned to elements alone.
ALIGNED, UNALIGNED = 1 << 40, (1 << 40) + 8
#: As many positions or channels as csrc/cbam.cpp lets through.
MOST = (1 << 31) - 1 - 1024
FEATURES = [
    *((1, 1, 1), (1, 1, MOST), (1, MOST, 1), (1, 2, MOST), (2, MOST, 1), (65535, 4, 65536)),
    *((65536, 4, 65536), (1 << 22, 64, 49), (1 << 24, 1, 1), ((1 << 31) + 3, 1, 1)),
    *((3, 2, (1 << 30) + 5), (1, 1 << 20, 1 << 14), (1, 100003, 100003), (1, 1 << 27, 128)),
    *((1, 128, 1 << 27), (7, 2048, 49 << 14)),
    (16, 8192, 12012),  # wide tiles of many rows: the most terms that a block has
]
#: n, c, h, w, height, width
IMAGES = [
    *((1, 1, 1, 1, 1, 1), (1, 1, 40000, 40000, 80000, 80000), (1 << 12, 1024, 16, 16, 32, 32)),
    *((1, 1 << 26, 1, 1, 8, 8), (1, 1, 1, MOST, 1, MOST), (1, 1, MOST, 1, MOST, 1)),
    *((1 << 28, 1, 1, 1, 4, 4), (1, (1 << 31) + 5, 1, 1, 1, 1), (1 << 25, 128, 1, 1, 1, 1)),
]
#: Sizes of attention_gate with more groups, or elements, than a grid has blocks for.
BLOCKLESS = [
    {"activation": CHANNEL, "outer": (1 << 32) + 5, "members": 1, "inner": 2},
    {"activation": SPATIAL, "outer": (1 << 32) + 5, "members": 1, "inner": 2},
    {"activation": CHANNEL, "outer": (1 << 32) + 5, "members": 3000, "inner": 1},
    {"activation": SPATIAL, "outer": (1 << 32) + 5, "members": 3000, "inner": 1},
    {"activation": MIXED, "outer": 1, "members": 1 << 62, "inner": 1},
]
#: Images that take several launches: n, c, h, w, height, width, channels_last.
SLICED = [
    *(((1 << 32) + 5, 2, 1, 1, 1, 1, 1), ((1 << 32) + 5, 8, 1, 1, 2, 2, 1)),
    *((17 << 24, 3, 2, 2, 4, 4, 0), (1 << 45, 2, 1, 1, 1, 1, 0)),
]


def random_features(count: int) -> Iterator[tuple[int, int, int]]:
    """Shapes of every kind, for what shared memory they ask for."""
    random = np.random.default_rng(0)
    for _ in range(count):
        powers = 1 << int(random.integers(0, 14))
        cs = [int(random.integers(1, 300)), int(random.integers(1, 5000)), powers]
        side = int(random.integers(1, 120))
        hws = [int(random.integers(1, 300)), int(random.integers(1, 20000)), side**2]
        yield int(random.choice([1, 2, 16, 300])), int(random.choice(cs)), int(random.choice(hws))


def wrong_launches(emulator: Emulator, random: int) -> tuple[int, list[str]]:
    """How many launches were computed, and what was wrong with them.

    Args:
        random: how many random shapes of features are tried beside the extreme ones.
    """
    count, wrong = 0, []
    for name, sizes, dtypes in _cases(random):
        launcher = LAUNCHERS[name]
        numbers = launcher.sizes(sizes)
        for dtype in dtypes:
            for address in (ALIGNED, UNALIGNED):
                for absent in ((), *launcher.optional):
                    buffers: list[int | None] = [
                        None if key in absent else address for key in launcher.buffers
                    ]
                    emulator.configure(dry=True)
                    if launcher.workspace:
                        buffers.append(ALIGNED)
                        if emulator.workspace(name, dtype, numbers) < 0:
                            wrong.append(f"{name} {NAMES[dtype]} {sizes}: a negative workspace")
                    error = emulator.launch(name, dtype, numbers, buffers)
                    count += 1
                    if error or emulator.findings():
                        found = emulator.findings().split("\n")[0]
                        wrong.append(f"{name} {NAMES[dtype]} {sizes} {absent}: {error} {found}")
    return count, wrong


def launched(
    emulator: Emulator, name: str, sizes: dict[str, int], address: int = ALIGNED
) -> tuple[int, list[Launch]]:
    """The cudaError_t of a float32 launcher whose buffers are there, and its launches."""
    launcher = LAUNCHERS[name]
    emulator.configure(dry=True)
    numbers = launcher.sizes(sizes)
    error = emulator.launch(name, FLOAT32, numbers, [address] * len(launcher.buffers))
    return error, emulator.launches()


def _cases(random: int) -> Iterator[tuple[str, dict[str, int], range]]:
    every = range(4)
    shapes = [(shape, every) for shape in FEATURES]
    for index, shape in enumerate(random_features(random)):
        shapes.append((shape, range(index % 4, index % 4 + 1)))
    for (n, c, hw), dtypes in shapes:
        for last in (0, 1):
            for name, launcher in LAUNCHERS.items():
                if launcher.on == "features":
                    sizes = {"n": n, "c": c, "hw": hw, "channels_last": last, "relu": 1}
                    yield name, sizes, dtypes
                elif launcher.on == "groups":
                    for activation in (MIXED, CHANNEL, SPATIAL):
                        yield name, groups(activation, n, c, hw, last) | {"residual": 1}, dtypes
    keys = ("n", "c", "h", "w", "height", "width")
    for images in IMAGES:
        for last in (0, 1):
            for align in (0, 1):
                sizes = dict(zip(keys, images, strict=True))
                sizes |= {"channels_last": last, "align_corners": align}
                for name, launcher in LAUNCHERS.items():
                    if launcher.on == "images":
                        yield name, sizes, every
