"""Random calls of every operator, on any strides, against float64.

    python -m tests.kernels.fuzz --cases 20000 [--seed 7] [--first 123]

Every case follows from the seed and its number, and both are printed: ``--first 123 --cases 1``
repeats one. It runs the compiled kernels of the CPU, so it is also what the sanitizers watch.
"""

import argparse
import secrets
import sys

import numpy as np
import torch
from torch import Tensor

from .harness import DTYPES, Place, check_against_reference, check_outputs
from .operators import OPERATORS, Case

PLACE = Place("native", "cpu")
#: Elements of the largest tensor.
MOST_ELEMENTS = 20_000
NAMES = [name for name, case in OPERATORS.items() if not case.triton_alone]
#: Values below which all those of a small operand's gradient, sums over a map or over the channels,
#: may happen to cancel: relative to their norm no float32 is exact then.
FEW_SUMS = 4
#: Positions below which a standardised map's deviation cancels: no dtype is exact there, nor in the
#: gradient, which is 0, of the norm of a single channel.
FEW_POSITIONS = 8


def scattered(t: Tensor, rng: np.random.Generator) -> Tensor:
    """t's values with its dimensions in any order in memory, with steps, gaps and an offset between
    them, or with one dimension that is a repetition (whose values are then all the first)."""
    if t.numel() and rng.random() < 0.1:
        axis = int(rng.integers(t.dim()))
        t = t.narrow(axis, 0, 1).expand(t.shape)
        if rng.random() < 0.5:
            return t
    order = rng.permutation(t.dim())
    steps, gaps = rng.choice((1, 1, 1, 2, 3), t.dim()), rng.choice((0, 0, 0, 1, 5), t.dim())
    strides, size = [0] * t.dim(), 1
    for axis in order:
        strides[axis] = size * int(steps[axis])
        size = strides[axis] * t.shape[axis] + int(gaps[axis])
    offset = int(rng.choice((0, 0, 1, 2, 3, 7)))
    storage = torch.full((size + offset + 1,), torch.nan, dtype=t.dtype)
    return storage.as_strided(t.shape, strides, offset).copy_(t)


def _shape(rng: np.random.Generator) -> tuple[int, int, int, int]:
    while True:
        n, c = int(rng.integers(1, 4)), int(rng.choice((1, 2, 3, 8, 16, 17, 33, 64, 70)))
        h, w = (int(side) for side in rng.choice((1, 2, 3, 5, 7, 8, 14, 16, 21, 28, 33), 2))
        if n * c * h * w <= MOST_ELEMENTS and n * min(c, h * w) >= FEW_SUMS:
            return n, c, h, w


def _call(seed: int, number: int) -> tuple[str, Case, list[Tensor]]:
    rng = np.random.default_rng((seed, number))
    name = NAMES[int(rng.integers(len(NAMES)))]
    shape = _shape(rng)
    while (name == "attention_gate[spatial]" and shape[2] * shape[3] < FEW_POSITIONS) or (
        name == "attention_gate[channel]" and shape[1] == 1
    ):
        shape = _shape(rng)
    case = OPERATORS[name]
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    while True:
        inputs = [scattered(t, rng) for t in case.inputs(shape, dtype)]
        if "batch_norm" not in name or _settled(name, case, inputs):
            return name, case, inputs
        shape = _shape(rng)


def _settled(name: str, case: Case, inputs: list[Tensor]) -> bool:
    """Whether channels have a deviation, and no result is so close to 0 that rounding decides what
    a ReLU does with its gradient."""
    *images, weight, bias = (t.double() for t in inputs)
    n, _, h, w = images[0].shape
    if n * h * w < FEW_POSITIONS or sum(images[1:], images[0]).var((0, 2, 3)).min() < 0.01:
        return False
    if images[0].var((0, 2, 3)).min() < 0.01 or weight.abs().min() < 1e-3:
        return False
    for sign in (1, -1):  # what the ReLU clips, and what it keeps
        terms = [sign * t for t in images[1:]] if name == "batch_norm_add_relu" else images[1:]
        out = case.reference(images[0], *terms, sign * weight, sign * bias)
        out = out if isinstance(out, Tensor) else out[-1]
        if ((out > 0) & (out < 1e-5)).any():
            return False
    return True


def run(seed: int, number: int) -> None:
    """Case `number` of a seed. Raises AssertionError that names them, and what was called."""
    name, case, inputs = _call(seed, number)
    check = check_against_reference if case.differentiable else check_outputs
    try:
        check(PLACE, case.op, case.reference, inputs)
    except AssertionError as error:
        given = [(tuple(t.shape), t.stride(), str(t.dtype)) for t in inputs]
        what = f"seed {seed}, case {number}: {name} of {given}: {error}"
        raise AssertionError(what) from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.fuzz")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.cases} cases from {given.first} on", flush=True)
    wrong = 0
    for number in range(given.first, given.first + given.cases):
        try:
            run(given.seed, number)
        except AssertionError as error:
            print(error, flush=True)
            wrong += 1
    print(f"{given.cases - wrong} right, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
