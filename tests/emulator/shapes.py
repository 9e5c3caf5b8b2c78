"""Shapes for random cases, and those that random small ones miss."""

from .trial import Trial

SMALL = [
    *(*range(1, 10), 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49),
    *(63, 64, 65, 97, 100, 127, 128, 129, 131),
]
POSITIONS = [
    *(1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 200, 225, 256),
    *(289, 392, 400, 441, 529, 576, 784, 961, 1024, 1369, 1521, 3136),
]
CHANNELS = [
    *(1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 32, 40, 48, 64, 72, 96, 100, 127, 128, 160, 192),
    *(255, 256, 320, 512, 640, 1000, 1024, 1031, 2048),
]

#: (n, c, hw) of two-stage reductions, several tiles and many rows.
SYSTEMATIC = [
    *((1, 1, 1), (1, 1, 49), (2, 2048, 49), (1, 2048, 1), (1, 1, 3136), (3, 64, 49)),
    *((2, 512, 196), (1, 24, 784), (1, 64, 3136), (1, 2, 40000), (1, 40000, 2), (1, 3, 30011)),
    *((1, 30011, 3), (1, 16, 12544), (1, 8, 16385), (1, 16384, 8), (1, 24, 4225), (300, 8, 49)),
    *((70, 40, 196), (1, 1024, 100), (5, 1031, 7), (2, 96, 1521), (1, 8, 1031), (1, 256, 441)),
    *((1, 40, 2601), (1, 2048, 196), (40, 128, 64), (1, 16, 8281)),
]
#: (n, c, h, w, height, width) where an axis keeps its size, or is one row or column.
KEPT_AXES = [
    *((1, 3, 4, 5, 4, 9), (2, 8, 3, 7, 5, 7), (1, 2, 3, 2, 3, 2), (2, 16, 1, 1, 1, 1)),
    *((1, 8, 1, 5, 1, 8), (1, 8, 5, 1, 16, 1), (1, 16, 7, 7, 3, 2)),
]
#: More samples than the second dimension of a grid holds.
MANY_SAMPLES = (65536 + 3, 1, 2)


def features(trial: Trial, most: int = 50000) -> tuple[int, int, int]:
    """A random (n, c, hw) of at most so many elements."""
    while True:
        n = trial.pick([1, 1, 2, 3, 4, 5])
        c, hw = trial.pick(CHANNELS), trial.pick(POSITIONS)
        if trial.chance(0.25):
            c, hw = trial.pick(SMALL), trial.pick(SMALL)
        if n * c * hw <= most:
            return n, c, hw
