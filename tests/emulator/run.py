"""Runs random cases of the launchers: ``python -m tests.emulator.run KIND [options]``.

A process of its own, because a wrong kernel may take it down. The exit status is 1 where a case is
wrong. See build.py for the kinds; "huge" checks launches at extreme shapes and, with more than 2³¹
elements, blocks of them.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from . import (  # noqa: F401 - some register cases
    affine,
    beyond,
    beyond_norms,
    build,
    cbam,
    gates,
    images,
    limits,
    norms,
    pools,
    shapes,
)
from .formats import PACK
from .library import Emulator
from .trial import CASES, Trial

ROOT = Path(__file__).parents[2]
#: Cases on features, which take (n, c, hw, dtype, channels_last).
ON_FEATURES = (
    *("channel_pool", "spatial_pool", "cbam_gate", "cbam_grad_spatial", "cbam_grad_channel"),
    *("cbam_grad_x", "add_affine_relu"),
    *("batch_norm_statistics", "batch_norm_apply", "batch_norm_reduce", "batch_norm_grad"),
)
#: (n, many rows, few): so many that a thread takes several, the last ones short of a whole step.
MANY_ROWS = ((4, 65539, 1), (2, 33003, 8))
OVER_ROWS = {
    0: ("channel_pool", "cbam_grad_channel", "batch_norm_statistics", "batch_norm_reduce"),
    1: ("spatial_pool", *["cbam_grad_spatial"] * 3),
}


def command(kind: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a run."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LD_PRELOAD": build.sanitizer_libraries("narrow" if kind == "huge" else kind),
    }
    return [sys.executable, "-m", "tests.emulator.run", kind, *options], environment


def run(kind: str, *options: str, timeout: float = 3600) -> tuple[bool, str]:
    """Whether all was right in a run of its own process, and what it printed."""
    arguments, environment = command(kind, *options)
    result = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    printed = result.stdout + result.stderr
    sanitized = any(word in printed for word in ("runtime error", "ERROR: AddressSanitizer"))
    return result.returncode == 0 and not sanitized, printed


def systematic(trial: Trial, names: list[str], seconds: float) -> None:
    """Shapes that random ones miss, as many as fit into the time."""
    deadline = time.monotonic() + seconds
    for shape in shapes.SYSTEMATIC:
        for name in (name for name in names if name in ON_FEATURES):
            for dtype in range(4):
                for last in range(2):
                    if time.monotonic() < deadline:
                        CASES[name](trial, (*shape, dtype, last))
    if "upsample" in names:
        for image in shapes.KEPT_AXES:
            for _ in range(24):
                if time.monotonic() < deadline:
                    images.upsample(trial, image)


def many(trial: Trial, names: list[str]) -> None:
    """Rows enough to fill a chip, and more samples than a grid has rows."""
    orders = trial.orders
    trial.orders = min(orders, 2)
    for dtype in range(4):
        for n, rows, packs in MANY_ROWS:
            for last, cases in OVER_ROWS.items():
                for name in (name for name in cases if name in names):
                    few = PACK[dtype] * packs
                    shape = (n, few, rows) if last else (n, rows, few)
                    CASES[name](trial, (*shape, dtype, last))
    trial.orders = 1
    for name in (name for name in names if name in ON_FEATURES):
        dtype, last = int(trial.random.integers(1, 4)), int(trial.random.integers(0, 2))
        CASES[name](trial, (*shapes.MANY_SAMPLES, dtype, last))
    trial.orders = orders


def huge(random: int) -> int:
    """The exit status of the checks at extreme shapes; prints what is wrong."""
    start = time.monotonic()
    emulator = Emulator(build.kernels("narrow"))
    count, wrong = limits.wrong_launches(emulator, random)
    for cases in (beyond, beyond_norms):
        wrong += cases.wrong_results(emulator)
    print("\n".join(f"WRONG {text}" for text in wrong[:20]))
    seconds = time.monotonic() - start
    print(f"huge: {count} launches computed, {len(wrong)} wrong, in {seconds:.0f} s")
    return 1 if wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*build.KINDS, "huge"))
    parser.add_argument("--library", type=Path, help="instead of the one that is built")
    parser.add_argument("--seconds", type=float, default=60, help="of random cases")
    parser.add_argument("--cases", type=int, default=0, help="random ones of each; 0: by time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--orders", type=int, default=3, help="of threads")
    parser.add_argument(
        "--approximation", type=int, default=0, help="units that fast functions are off"
    )
    parser.add_argument("--random", action="store_true", help="leave out the systematic shapes")
    parser.add_argument(
        "--many",
        action="store_true",
        help="also shapes of very many rows, samples; ends where all kernels were entered",
    )
    options = parser.parse_args()

    np.seterr(all="ignore")
    start = time.monotonic()
    if options.kind == "huge":
        sys.exit(huge(options.cases))
    emulator = Emulator(options.library or build.kernels(options.kind))
    emulator.c.set_approximation(options.approximation)
    trial = Trial(emulator, options.seed, options.orders)
    names = [name for name in CASES if options.only in name]
    if not options.random:
        systematic(trial, names, options.seconds / 2)
    if options.many:
        many(trial, names)
    rounds = 0
    while time.monotonic() - start < options.seconds and (
        not options.cases or rounds < options.cases
    ):
        if options.many and len(emulator.entered()) == len(emulator.kernels):
            break
        for name in names:
            CASES[name](trial)
        rounds += 1
    wrong = sum(trial.wrong.values())
    print(f"cases: {dict(trial.cases)}")
    print(
        f"{options.kind}: {sum(trial.cases.values())} cases in {time.monotonic() - start:.0f} s; "
        f"{len(emulator.entered())} of {len(emulator.kernels)} kernels entered; "
        f"wrong: {wrong} {dict(trial.wrong) if wrong else ''}"
    )
    never = sorted(set(emulator.kernels.values()) - emulator.entered())
    print("never entered:", ", ".join(never) or "none")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
