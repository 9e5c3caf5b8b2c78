"""Widths of the accesses that nvcc made, from the SASS, beside those that the emulator counted.

What the emulator counts is g++'s code, where a copy of a pack is one access. Where nvcc takes packs
apart, the emulator's requests are too wide, and its figures of "load" and "store" too good.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.emulator.library import plain_name
from tests.emulator.traffic import WIDTHS, Counted

#: Shares of a kernel's bytes below this are its edges.
EDGE = 0.05
_FUNCTION = re.compile(r"Function : (\S+)")
_ACCESS = re.compile(r"\b(LDG|LD|STG|ST)\.E((?:\.\w+)*)")


class Instructions(NamedTuple):
    """How many instructions of each width, in bytes, reach global memory."""

    load: Counter[int]
    store: Counter[int]


def cuobjdump() -> str | None:
    """The toolkit's, or the one in Triton's package."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    inside = Path(str(spec and spec.origin)).parent / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.is_file() else None


def of_extension(path: Path, target: str = "sm_90") -> dict[str, Instructions]:
    """{kernel: its instructions} of a built extension."""
    command = [str(cuobjdump()), "--dump-sass", "-arch", target, str(path)]
    return of_sass(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def of_sass(text: str) -> dict[str, Instructions]:
    found: dict[str, Instructions] = defaultdict(lambda: Instructions(Counter(), Counter()))
    name = ""
    for line in text.splitlines():
        if function := _FUNCTION.search(line):
            name = function[1]
        elif access := _ACCESS.search(line):
            side = found[name].load if access[1].startswith("LD") else found[name].store
            side[_bytes(access[2])] += 1
    names = list(found)
    run = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return {
        plain_name(plain): found[name]
        for name, plain in zip(names, run.stdout.splitlines(), strict=True)
    }


def _bytes(modifiers: str) -> int:
    words = modifiers.split(".")
    for word, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if word in words:
            return width
    return 4


def differences(
    counted: list[Counted], instructions: dict[str, Instructions]
) -> dict[str, tuple[str, str]]:
    """{kernel, side: (what the emulator counted, what the SASS has)} where they differ.

    They differ where the emulator counted a width, of more than an edge, that the SASS has not, or
    where the SASS is wider.
    """
    totals: dict[tuple[str, str], list[float]] = {}
    for one in counted:
        for side, values in (("load", one.load), ("store", one.store)):
            total = totals.setdefault((one.launch.kernel, side), [0.0] * len(WIDTHS))
            for index, value in enumerate(values.by_width):
                total[index] += value
    found = {}
    for (kernel, side), total in sorted(totals.items()):
        if kernel not in instructions or not sum(total):
            continue
        have = getattr(instructions[kernel], side)
        shares = {w: t / sum(total) for w, t in zip(WIDTHS, total, strict=True) if t}
        used = {width for width, share in shares.items() if share >= EDGE}
        if used - set(have) or max(have, default=0) > max(used):
            found[f"{kernel}, {side}"] = (
                ", ".join(f"{share:.0%} in {w}" for w, share in sorted(shares.items())),
                ", ".join(f"{n} of {w}" for w, n in sorted(have.items())) or "none",
            )
    return found
