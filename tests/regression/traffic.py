"""What the networks' operators cost in memory traffic, as the emulator counts it: the rows of the
guard and of the table.

``python -m tests.regression.traffic FILE`` writes the table as Markdown and why.md beneath it; with
``--extension ran_kernels/libran_kernels.so`` also where nvcc's accesses differ from those counted.
"""

import argparse
import functools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulator import build, traffic
from tests.emulator.formats import BFLOAT16, FLOAT32, NAMES
from tests.emulator.gates import CHANNEL, MIXED, SPATIAL, groups
from tests.emulator.library import Emulator

from . import BASELINE, widths

#: (channels, height) of CBAM-ResNet-50's blocks, and of Attention-92's units and modules.
STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
#: Where networks normalise, besides.
STEM = (64, 112)
#: Batch normalisation's passes as most layers have them, and with the terms of residual sums.
NORMS = {
    "batch_norm_statistics": ("addend", "sum"),
    "batch_norm_apply": ("shortcut",),
    "batch_norm_reduce": ("out", "masked"),
    "batch_norm_grad": ("addend",),
}
#: And where Attention-92 interpolates, from the lower height.
UPSAMPLED = ((256, 28), (512, 14), (1024, 7))
BATCHES = (32, 128)
DTYPES = (BFLOAT16, FLOAT32)
ON_FEATURES = (
    *("channel_pool", "spatial_pool", "cbam_gate", "cbam_grad_spatial", "cbam_grad_channel"),
    *("cbam_grad_x", "add_affine_relu"),
)
ACTIVATIONS = {"mixed": MIXED, "channel": CHANNEL, "spatial": SPATIAL}


@dataclass(frozen=True, eq=False)
class Row:
    """A launcher on a tensor of a network."""

    label: str
    launcher: str
    dtype: int
    batch: int
    sizes: dict[str, int]
    absent: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.label}, {NAMES[self.dtype]}"


def rows() -> Iterator[Row]:
    """All of them, operator by operator."""
    for batch in BATCHES:
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last"):
                yield from _rows(batch, dtype, layout)


def _rows(batch: int, dtype: int, layout: str) -> Iterator[Row]:
    last = int(layout == "channels_last")

    def row(operator: str, launcher: str, shape: str, sizes: dict[str, int], *absent: str) -> Row:
        label = f"{operator} {batch}×{shape} {layout}"
        return Row(label, launcher, dtype, batch, sizes, absent)

    for name in ON_FEATURES:
        for channels, height in STAGES:
            sizes = {"n": batch, "c": channels, "hw": height**2, "channels_last": last}
            yield row(name, name, f"{channels}×{height}²", sizes | {"relu": 1})
    for name, residual in NORMS.items():
        for channels, height in (STEM, *STAGES):
            sizes = {"n": batch, "c": channels, "hw": height**2, "channels_last": last, "relu": 1}
            yield row(name, name, f"{channels}×{height}²", sizes, *residual)
            if dtype == BFLOAT16 and (channels, height) != STEM:
                yield row(f"{name} [residual]", name, f"{channels}×{height}²", sizes)
    for activation, kind in ACTIVATIONS.items():
        if kind == MIXED and last:
            continue  # element by element: the layout makes no difference
        for name in ("attention_gate", "attention_gate_backward"):
            for channels, height in STAGES[:3]:
                sizes = groups(kind, batch, channels, height**2, last) | {"residual": 1}
                yield row(f"{name} [{activation}]", name, f"{channels}×{height}²", sizes)
    for operator, name in (("upsample_add", "upsample"), ("upsample_backward",) * 2):
        for channels, height in UPSAMPLED:
            sizes = {"n": batch, "c": channels, "h": height, "w": height}
            sizes |= {"height": 2 * height, "width": 2 * height}
            sizes |= {"align_corners": 1, "channels_last": last}
            yield row(operator, name, f"{channels}×{height}²→{2 * height}²", sizes)


@functools.cache
def counts(row: Row) -> list[traffic.Counted]:
    return traffic.count(watching(), row.launcher, row.dtype, row.sizes, absent=row.absent)


def counted(row: Row, resources: dict[str, Any]) -> dict[str, float]:
    """The row's figures; see `tests.emulator.traffic.figures`."""
    launches = counts(row)
    least = traffic.least_bytes(row.launcher, row.dtype, row.sizes, row.absent)
    return traffic.figures(launches, least, resources)


@functools.cache
def watching() -> Emulator:
    return Emulator(build.kernels("race"))


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    keys = list(next(iter(figures.values())))
    lines = [f"| | {' | '.join(keys)} |", f"|---|{'--:|' * len(keys)}"]
    for name, values in figures.items():
        lines.append(f"| {name} | {' | '.join(f'{values[key]:g}' for key in keys)} |")
    return "\n".join(lines)


#: What a row's bytes, and sectors over bytes, may be.
MOST_BYTES, MOST_SECTORS = 1.1, 1.15


def exceeding(figures: dict[str, dict[str, float]]) -> str:
    """The rows above what they may be, as Markdown: operator and layout, how many rows, and from
    the least to the most of each figure there."""
    every: dict[str, list[dict[str, float]]] = {}
    for name, values in figures.items():
        operator, layout = name.split(", ")[0].rsplit(" ", 1)
        every.setdefault(f"{operator.rsplit(' ', 1)[0]}, {layout}", []).append(values)
    lines = ["| | rows | asked | touched | load | store |", "|---|--:|--:|--:|--:|--:|"]
    limits = {"asked": MOST_BYTES, "touched": MOST_BYTES}
    limits |= {"load": MOST_SECTORS, "store": MOST_SECTORS}
    for label, of_label in every.items():
        above = {key: [v[key] for v in of_label if v[key] > most] for key, most in limits.items()}
        count = sum(any(v[key] > most for key, most in limits.items()) for v in of_label)
        if count:
            ends = [sorted({min(a), max(a)}) if a else [] for a in above.values()]
            cells = ["–".join(f"{value:g}" for value in e) for e in ends]
            lines.append(f"| {label} | {count} of {len(of_label)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_widths(every: list[Row], extension: Path) -> str:
    """Where nvcc's widths differ from those counted, as Markdown."""
    instructions = widths.of_extension(extension)
    found = widths.differences([c for row in every for c in counts(row)], instructions)
    lines = ["| kernel | bytes counted, by width | instructions in the SASS |", "|---|---|---|"]
    lines += [f"| `{name}` | {ours} | {theirs} |" for name, (ours, theirs) in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--extension", type=Path, help="a build with CUDA kernels for sm_90")
    options = parser.parse_args()
    resources = json.loads(BASELINE.read_text())["cuda"]
    every = list(rows())
    figures = {row.name: counted(row, resources) for row in every}
    explained = textwrap.dedent(str(traffic.figures.__doc__).split("\n\n", 1)[1]).rstrip()
    text = f"""# How the CUDA kernels reach memory

Counted by the emulator (tests/emulator) with `python -m tests.regression.traffic FILE`, a dozen
blocks of each grid standing for all; registers of sm_90 as in tests/regression/baseline.json.

```
{explained}
```

{table(figures)}

## Above {MOST_BYTES:g} × the least bytes, or {MOST_SECTORS:g} × the sectors of what is asked for

{exceeding(figures)}

{(Path(__file__).parent / "why.md").read_text().rstrip()}
"""
    if options.extension:
        text += f"""
## Widths of accesses, counted and in the SASS

Kernels of the rows above in whose SASS (`cuobjdump --dump-sass`, sm_90) accesses of global memory
have other widths than those counted, in bytes; of all other kernels they are the same.

{table_of_widths(every, options.extension)}
"""
    options.file.write_text(text)


if __name__ == "__main__":
    main()
