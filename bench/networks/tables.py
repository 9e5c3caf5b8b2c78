"""The documents' tables of what the network benchmarks found."""

import math
from statistics import linear_regression, median
from typing import Any

from bench.machine import summary
from bench.markdown import line

from .profiles import KINDS, OTHER, kind

#: Of the memory benchmark's variants, those beside plain PyTorch, and what the table calls them.
VARIANTS = {
    "ours": "ours",
    "ours norms": 'ours, `"norms"` recomputed',
    "ours checkpointed": "ours, checkpointed",
}
#: Of a benchmark's variants, those whose profiles are set side by side.
PROFILED = (
    *("plain", "ours", "plain compiled", "ours compiled"),  # of the speed benchmark
    *("channels_last", "compiled", "deployed"),  # of the deployed networks'
)
#: Kinds of operator in a step's traffic, by parts of their names; what fits none is the rest.
MOVED = {
    "convolutions": ("convolution",),
    "norm and ReLU": ("batch_norm", "relu", "threshold"),
    "additions": ("aten::add",),
}
THE_REST = "the rest"
#: Whose time until the first result the table of deployed networks gives.
READY = ("deployed", "compiled")


def memory(content: dict[str, Any]) -> str:
    """One line for a network: the peak MB of a training step and its share of plain PyTorch's."""
    ways = [way for way in VARIANTS if any(way in r["peak_bytes"] for r in content["results"])]
    headings = ("network", "images", "plain PyTorch, MB", *(VARIANTS[way] for way in ways))
    lines = [
        summary(content["machine"]),
        "",
        line(*headings),
        "|---|---|" + "--:|" * (1 + len(ways)),
    ]
    for result in content["results"]:
        peak = result["peak_bytes"]
        shares = (f"{peak[way] / 1e6:,.0f} ({peak[way] / peak['plain']:.2f})" for way in ways)
        lines.append(
            line(result["network"], _images(result), f"{peak['plain'] / 1e6:,.0f}", *shares)
        )
    return "\n".join(lines)


def traffic(content: dict[str, Any]) -> str:
    """One line for a network: the GB of a plain training step by kind, and others' share of it."""
    results = content["results"]
    others = dict.fromkeys(name for result in results for name in result["bytes"])
    del others["plain"]
    headings = ["network", "images", "dtype", "plain PyTorch, GB", *MOVED, THE_REST, *others]
    lines = [summary(content["machine"]), "", line(*headings)]
    lines.append("|---|---|---|" + "--:|" * (len(headings) - 3))
    for result in results:
        moved, kinds = result["bytes"], by_kind_moved(result["operators"]["plain"])
        cells = [result["network"], _images(result), result["dtype"]]
        cells += [f"{number / 1e9:,.1f}" for number in (moved["plain"], *kinds.values())]
        cells += [
            f"{moved[name] / 1e9:,.1f} ({moved[name] / moved['plain']:.2f})"
            if name in moved
            else ""
            for name in others
        ]
        lines.append(line(*cells))
    return "\n".join(lines)


def by_kind_moved(operators: dict[str, Any]) -> dict[str, int]:
    """Bytes by kind of operator, in the order of ``MOVED``, of a variant's operators."""
    found = dict.fromkeys((*MOVED, THE_REST), 0)
    for name, figures in operators.items():
        fits = (kind for kind, parts in MOVED.items() if any(part in name for part in parts))
        found[next(fits, THE_REST)] += figures["bytes"]
    return found


def fused(content: dict[str, Any]) -> str:
    """One line for a direction: medians and peaks before and after `fuse`, and their ratios."""
    headings = ("network", "images", "direction", "timm, ms", "fused, ms", "timm, MB", "fused, MB")
    lines = [summary(content["machine"]), "", line(*headings), "|---|---|---|--:|--:|--:|--:|"]
    for result in content["results"]:
        cells = []
        for figures, unit in ((result["median"], 1e3), (result["peak_bytes"], 1e-6)):
            share = figures["fused"] / figures["timm"]
            cells += [
                f"{figures['timm'] * unit:,.0f}",
                f"{figures['fused'] * unit:,.0f} ({share:.2f})",
            ]
        lines.append(line(result["network"], _images(result), result["direction"], *cells))
    return "\n".join(lines)


def speed(content: dict[str, Any]) -> str:
    """One line for a network and direction: our median, its ratio to every other variant's."""
    others = _variants(content, "ours")
    headings = ["network", "images", "dtype", "direction", "ours, ms"]
    headings += [f"÷ {name}" for name in others] + ["peak ÷ plain's", "profile: convolutions"]
    lines = [summary(content["machine"]), "", line(*headings)]
    lines.append("|---|---|---|---|" + "--:|" * (len(headings) - 4))
    for result in content["results"]:
        medians = {name: median(times) for name, times in result["samples"].items()}
        peak = result["peak_bytes"]["ours"] / result["peak_bytes"]["plain"]
        cells = [result["network"], _images(result), result["dtype"], result["direction"]]
        cells.append(f"{medians['ours'] * 1e3:,.0f}")
        cells += [_share(medians, "ours", name) for name in others]
        cells += [f"{peak:.2f}", f"{_convolutions(result['operations']['ours']):.0%}"]
        lines.append(line(*cells))
    return "\n".join(lines)


def _convolutions(operations: list[dict[str, Any]]) -> float:
    """The share of the time that convolutions take, forward and backward."""
    shares = by_kind(operations)
    return sum(ms for name, ms in shares.items() if "conv" in name) / sum(shares.values())


def by_kind(operations: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of every kind of operation, in the order of ``KINDS``."""
    found = dict.fromkeys((*(name for name, _ in KINDS), OTHER), 0.0)
    for operation in operations:
        found[kind(operation["name"])] += operation["ms"]
    return found


def speed_rows(content: dict[str, Any]) -> str:
    """One line for a network, direction and variant, with everything measured of it."""
    headings = ("network", "images", "dtype", "direction", "variant", "ms", "images/s")
    lines = [summary(content["machine"]), ""]
    lines.append(line(*headings, "compile, s", "peak, MB", "launches"))
    lines.append("|---|---|---|---|---|--:|--:|--:|--:|--:|")
    for result in content["results"]:
        names = (result["network"], _images(result), result["dtype"], result["direction"])
        for variant, times in result["samples"].items():
            seconds = median(times)
            compiling = result["compile_seconds"][variant]
            lines.append(
                line(
                    *names,
                    variant,
                    f"{seconds * 1e3:,.0f}",
                    f"{result['batch'] / seconds:,.1f}",
                    f"{compiling:,.0f}" if compiling else "",
                    f"{result['peak_bytes'][variant] / 1e6:,.0f}",
                    f"{result['launches'][variant]:,}",
                )
            )
    return "\n".join(lines)


def profiles(content: dict[str, Any]) -> str:
    """One line for a kind of operation in a network's call: its ms and share by variant.

    Of a benchmark of training, the training steps alone. The sum is of one profiled call, which
    takes longer than a timed one.
    """
    results = [r for r in content["results"] if r.get("direction") != "inference"]
    found = {name for result in results for name in result["operations"]}
    variants = [name for name in PROFILED if name in found]
    lines = [summary(content["machine"]), ""]
    headings = ("network", "images", "dtype", "kind of operation")
    lines.append(line(*headings, *(f"{v}, ms" for v in variants)))
    lines.append("|---|---|---|---|" + "--:|" * len(variants))
    for result in results:
        # One that was cut lacks some.
        kinds = {name: by_kind(result["operations"].get(name, [])) for name in variants}
        sums = {name: sum(kinds[name].values()) for name in variants}
        names = (result["network"], _images(result), result["dtype"])
        for of in next(iter(kinds.values())):
            if any(kinds[name][of] for name in variants):
                figures = (
                    (kinds[name][of], kinds[name][of] / (sums[name] or 1)) for name in variants
                )
                lines.append(line(*names, of, *(f"{ms:,.1f} ({part:.0%})" for ms, part in figures)))
        lines.append(line(*names, "**all**", *(f"**{sums[name]:,.0f}**" for name in variants)))
    return "\n".join(lines)


def scale(content: dict[str, Any]) -> str:
    """One line for a point of a sweep, with the slope of the sweep on logarithmic axes."""
    headings = ("sweep", "network", "images", "10⁹ multiply-adds", "plain, ms", "ours, ms")
    lines = [summary(content["machine"]), "", line(*headings, "slope")]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for name in dict.fromkeys(result["sweep"] for result in content["results"]):
        points = [result for result in content["results"] if result["sweep"] == name]
        for result in points:
            medians = [median(result["samples"][variant]) * 1e3 for variant in ("plain", "ours")]
            last = f"{slope(points):.2f}" if result is points[-1] else ""
            cells = (f"{result['multiply_adds']:.2f}", *(f"{ms:,.0f}" for ms in medians), last)
            lines.append(line(name, result["network"], _images(result), *cells))
    return "\n".join(lines)


def slope(points: list[dict[str, Any]], variant: str = "ours") -> float:
    """Of the time over multiply-adds, on logarithmic axes: 1 where cost grows with arithmetic."""
    x = [math.log(point["multiply_adds"]) for point in points]
    y = [math.log(median(point["samples"][variant])) for point in points]
    return linear_regression(x, y).slope


def deployed(content: dict[str, Any]) -> str:
    """One line for a network, batch and dtype: time, its share of others', memory, readiness."""
    ways = _variants(content, "deployed")
    headings = ("network", "images", "dtype", "deployed, ms", *(f"÷ {way}" for way in ways))
    timed = [way for way in READY if way in ("deployed", *ways)]
    ready = ("ready, s", "compiled ready, s")[: len(timed)]
    lines = [
        summary(content["machine"]),
        "",
        line(*headings, "peak, MB", "÷ channels_last's", *ready),
        f"|---|---|---{'|--:' * (len(ways) + len(ready) + 3)}|",
    ]
    for result in content["results"]:
        medians = {name: median(times) for name, times in result["samples"].items()}
        seconds, peak = result["ready_seconds"], result["peak_bytes"]
        lines.append(
            line(
                *(result["network"], _images(result), result["dtype"]),
                f"{medians['deployed'] * 1e3:,.0f}",
                *(_share(medians, "deployed", way) for way in ways),
                f"{peak['deployed'] / 1e6:,.0f}",
                f"{peak['deployed'] / peak['channels_last']:.2f}",
                *(f"{seconds[way]:.1f}" if way in seconds else "" for way in timed),
            )
        )
    return "\n".join(lines)


def _variants(content: dict[str, Any], beside: str) -> list[str]:
    """Of all entries, as one that was cut has fewer than the others."""
    names = dict.fromkeys(name for result in content["results"] for name in result["samples"])
    return [name for name in names if name != beside]


def _share(medians: dict[str, float], of: str, other: str) -> str:
    return f"{medians[of] / medians[other]:.2f}" if other in medians else ""


def _images(result: dict[str, Any]) -> str:
    return "×".join(map(str, (result["batch"], 3, *result["size"])))
