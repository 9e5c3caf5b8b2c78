"""Pictures of the measurements in bench/results, drawn by ``make tables``.

``python -m bench.plots FILE.json ...`` draws those of some files, beside them.

For a file NAME.json of kernels: NAME-ratios.png, ours against eager PyTorch and torch.compile, and
NAME-traffic.png, every operator's time over the bytes it must move, beside a copy's. For one of
networks' speed: NAME-bars.png, every variant against plain PyTorch; of their scale:
NAME-scaling.png; of a training: NAME-curves.png.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bench.kernels.figures import right, row
from bench.networks.tables import slope
from ran.pictures.plots import curves_figure
from ran.text import plural

RIVALS = {"eager": "to_eager", "torch.compile": "to_compile"}


def ratios(content: dict[str, Any]) -> Figure:
    """Bars of time over the rivals' time: an operator and layout each, the median of its shapes."""
    results = content["results"]
    directions = [d for d in ("forward", "forward+backward") if any(_is(r, d) for r in results)]
    figure, axes = plt.subplots(
        1, len(directions), figsize=(6 * len(directions), 6), sharey=False, squeeze=False
    )
    for axis, direction in zip(axes[0], directions, strict=True):
        groups: dict[str, list[dict[str, Any]]] = {}
        for result in results:
            if _is(result, direction):
                groups.setdefault(f"{result['op']}, {result['layout']}", []).append(row(result))
        height = 0.8 / len(RIVALS)
        for number, (rival, key) in enumerate(RIVALS.items()):
            places = [index + number * height for index in range(len(groups))]
            values = [right([figures[key] for figures in g]) for g in groups.values()]
            widths = [statistics.median(group or [math.nan]) for group in values]
            axis.barh(places, widths, height, label=f"÷ {rival}")
        axis.set_yticks([i + height / 2 for i in range(len(groups))], list(groups), fontsize=8)
        axis.axvline(1, color="black", linewidth=1)
        axis.invert_yaxis()
        axis.set_title(direction)
        axis.set_xlabel("our time ÷ theirs, median over shapes")
        axis.legend()
    figure.suptitle(_title(content["machine"]))
    figure.tight_layout()
    return figure


def traffic(content: dict[str, Any]) -> Figure:
    """Milliseconds over the megabytes that an operator must move at least, a point a result."""
    figure, axis = plt.subplots(figsize=(8, 6))
    groups: dict[str, list[tuple[float, float]]] = {}
    copies: list[tuple[float, float]] = []
    for result in content["results"]:
        moved = result["floor_traffic"] * result["bytes"] / 1e6
        groups.setdefault(result["op"], []).append((moved, row(result)["ms"]))
        copy = statistics.median(result["samples"]["copy"]) * 1e3
        copies.append((2 * result["bytes"] / 1e6, copy))
    for (name, points), marker in zip(groups.items(), "osv^D<>pP*Xh" * 2, strict=False):
        megabytes, milliseconds = zip(*points, strict=True)
        axis.scatter(megabytes, milliseconds, s=22, marker=marker, label=name)
    # The line of the largest tensors, where a call's own cost does not count.
    bandwidth = max(moved / ms for moved, ms in sorted(copies)[-max(1, len(copies) // 4) :])
    ends = (min(m for m, _ in copies), max(m for p in groups.values() for m, _ in p))
    axis.plot(
        ends, [m / bandwidth for m in ends], color="black", label=f"copy, {bandwidth:.0f} GB/s"
    )
    _logarithmic(axis)
    axis.set_xlabel("least traffic of the operator, MB")
    axis.set_ylabel("time, ms")
    axis.set_title(_title(content["machine"]))
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def bars(content: dict[str, Any]) -> Figure:
    """Time of every variant over plain PyTorch's, for each network, direction and dtype."""
    results = content["results"]
    names = dict.fromkeys(name for result in results for name in result["samples"])
    variants = [name for name in names if name != "plain"]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.9 * len(results)))
    height = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        # One that was cut lacks some.
        there = [index for index, result in enumerate(results) if variant in result["samples"]]
        shares = [_median(results[at], variant) / _median(results[at], "plain") for at in there]
        places = [index + number * height for index in there]
        drawn = axis.barh(places, shares, height, label=variant, color=COLORS[variant])
        axis.bar_label(drawn, fmt="{:.2f}", padding=2, fontsize=7)
    ticks = [
        f"{result['network']}\n{result['direction']}, {result['dtype']}, "
        f"{plural(result['batch'], 'image')}"
        for result in results
    ]
    axis.set_yticks([i + (0.8 - height) / 2 for i in range(len(results))], ticks, fontsize=8)
    axis.axvline(1, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("time ÷ plain eager PyTorch's in channels_last (less is better)")
    axis.margins(x=0.08, y=0.01)
    axis.legend(fontsize=8, ncols=len(variants), loc="lower left", bbox_to_anchor=(0, 1))
    figure.suptitle(_title(content["machine"]), fontsize=10)
    figure.tight_layout()
    return figure


#: Of the variants of a network: ours in one hue, the others in another.
COLORS = {
    "plain contiguous": "#c9c9c9",
    "plain compiled": "#8f8f8f",
    "plain max-autotune": "#5f5f5f",
    "ours": "#7fb2de",
    "ours norms": "#8ecfa8",
    "ours norm_conv": "#2f9e60",
    "ours compiled": "#1f6fb4",
}


def scaling(content: dict[str, Any]) -> Figure:
    """Time over multiply-adds as the batch, the resolution and the depth grow, slopes stated."""
    sweeps = list(dict.fromkeys(result["sweep"] for result in content["results"]))
    figure, axes = plt.subplots(1, len(sweeps), figsize=(4.8 * len(sweeps), 4.8), squeeze=False)
    for axis, sweep in zip(axes[0], sweeps, strict=True):
        points = [result for result in content["results"] if result["sweep"] == sweep]
        work = [point["multiply_adds"] for point in points]
        for variant, style in (("plain", "o--"), ("ours", "s-")):
            times = [_median(point, variant) * 1e3 for point in points]
            axis.plot(work, times, style, label=f"{variant}: slope {slope(points, variant):.2f}")
        axis.set_title(f"{sweep}: slope {slope(points):.2f}")
        axis.set_xlabel("10⁹ multiply-adds")
        axis.set_ylabel("inference, ms")
        _logarithmic(axis)
        # A sweep is about a decade: its own points tell more than powers of ten.
        axis.set_xticks(work, [f"{value:.3g}" for value in work], fontsize=8, rotation=45)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.legend()
    figure.suptitle(_title(content["machine"]))
    figure.tight_layout()
    return figure


def curves(content: dict[str, Any]) -> Figure:
    """Loss and test accuracy of a training, epoch by epoch."""
    title = f"{content['settings']['model']} on {content['data']}: {content['name']}"
    return curves_figure(content["epochs"], title=title)


#: By the kind of a result file, its pictures by the ending of their name.
PICTURES: dict[str, dict[str, Callable[[dict[str, Any]], Figure]]] = {
    "kernels": {"ratios": ratios, "traffic": traffic},
    "network speed": {"bars": bars},
    "network scale": {"scaling": scaling},
    "training": {"curves": curves},
}


def draw(content: dict[str, Any], name: str, folder: Path) -> list[Path]:
    """Writes the pictures of a result file called `name`, and returns their paths."""
    written = []
    for suffix, picture in PICTURES[content["kind"]].items():
        figure = picture(content)
        path = folder / f"{name}-{suffix}.png"
        # Without the version that Matplotlib adds: the same results give the same file.
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)
        written.append(path)
    return written


def main(paths: Sequence[str]) -> None:
    """Draws the pictures of the result files ``paths``, beside them."""
    for path in map(Path, paths):
        content = json.loads(path.read_text("utf-8"))
        # A training's file has no entries, and one that was cut may have none.
        if content["kind"] in PICTURES and content.get("results", True):
            draw(content, path.stem, path.parent)


def _logarithmic(axis: Axes) -> None:
    """Both axes logarithmic, with plain numbers."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("")
    axis.grid(True, which="both", alpha=0.25)


def _is(result: dict[str, Any], direction: str) -> bool:
    return result["direction"] == direction


def _median(result: dict[str, Any], variant: str) -> float:
    return statistics.median(result["samples"][variant])


def _title(machine: dict[str, Any]) -> str:
    return f"{machine['chip']}, {plural(machine['threads'], 'thread')}, torch {machine['torch']}"


if __name__ == "__main__":
    main(sys.argv[1:])
