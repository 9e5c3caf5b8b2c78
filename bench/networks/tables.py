"""The documents' tables of what the network benchmarks found."""

import math
from statistics import linear_regression, median
from typing import Any

from bench.machine import summary
from bench.markdown import line

#: Of the memory benchmark's variants, those beside plain PyTorch, and what the table calls them.
VARIANTS = {"ours": "ours", "ours checkpointed": "ours, checkpointed"}
#: Whose time until the first result the table of deployed networks gives.
READY = ("deployed", "compiled")


def memory(content: dict[str, Any]) -> str:
    """One line for a network: the peak MB of a training step and its share of plain PyTorch's."""
    headings = ("network", "images", "plain PyTorch, MB", *VARIANTS.values())
    lines = [summary(content["machine"]), "", line(*headings), "|---|---|--:|--:|--:|"]
    for result in content["results"]:
        peak = result["peak_bytes"]
        shares = (f"{peak[v] / 1e6:,.0f} ({peak[v] / peak['plain']:.2f})" for v in VARIANTS)
        lines.append(
            line(result["network"], _images(result), f"{peak['plain'] / 1e6:,.0f}", *shares)
        )
    return "\n".join(lines)


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
    others = [name for name in content["results"][0]["samples"] if name != "ours"]
    headings = ["network", "images", "dtype", "direction", "ours, ms"]
    headings += [f"÷ {name}" for name in others] + ["peak ÷ plain's", "profile: convolutions"]
    lines = [summary(content["machine"]), "", line(*headings)]
    lines.append("|---|---|---|---|" + "--:|" * (len(headings) - 4))
    for result in content["results"]:
        medians = {name: median(times) for name, times in result["samples"].items()}
        peak = result["peak_bytes"]["ours"] / result["peak_bytes"]["plain"]
        cells = [result["network"], _images(result), result["dtype"], result["direction"]]
        cells.append(f"{medians['ours'] * 1e3:,.0f}")
        cells += [f"{medians['ours'] / medians[name]:.2f}" for name in others]
        cells += [f"{peak:.2f}", f"{_convolutions(result['operations']['ours']):.0%}"]
        lines.append(line(*cells))
    return "\n".join(lines)


def _convolutions(operations: list[dict[str, Any]]) -> float:
    """The share of the time that convolutions take, forward and backward."""
    total = sum(operation["ms"] for operation in operations)
    return sum(o["ms"] for o in operations if "convolution" in o["name"]) / total


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


def slope(points: list[dict[str, Any]]) -> float:
    """Of our time over multiply-adds, on logarithmic axes: 1 where cost grows with arithmetic."""
    x = [math.log(point["multiply_adds"]) for point in points]
    y = [math.log(median(point["samples"]["ours"])) for point in points]
    return linear_regression(x, y).slope


def deployed(content: dict[str, Any]) -> str:
    """One line for a network, batch and dtype: ms deployed, shares of the other ways, readiness."""
    ways = [name for name in content["results"][0]["samples"] if name != "deployed"]
    headings = ("network", "images", "dtype", "deployed, ms", *(f"÷ {way}" for way in ways))
    timed = [way for way in READY if way in ("deployed", *ways)]
    ready = ("ready, s", "compiled ready, s")[: len(timed)]
    lines = [
        summary(content["machine"]),
        "",
        line(*headings, *ready),
        f"|---|---|---{'|--:' * (len(ways) + len(ready) + 1)}|",
    ]
    for result in content["results"]:
        medians = {name: median(times) for name, times in result["samples"].items()}
        seconds = result["ready_seconds"]
        lines.append(
            line(
                *(result["network"], _images(result), result["dtype"]),
                f"{medians['deployed'] * 1e3:,.0f}",
                *(f"{medians['deployed'] / medians[way]:.2f}" for way in ways),
                *(f"{seconds[way]:.1f}" for way in timed),
            )
        )
    return "\n".join(lines)


def _images(result: dict[str, Any]) -> str:
    return "×".join(map(str, (result["batch"], 3, *result["size"])))
