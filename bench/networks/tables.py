"""The documents' tables of what the network benchmarks found."""

from typing import Any

from bench.machine import summary

#: Of the memory benchmark's variants, those beside plain PyTorch, and what the table calls them.
VARIANTS = {"ours": "ours", "ours checkpointed": "ours, checkpointed"}


def memory(content: dict[str, Any]) -> str:
    """One line for a network: the peak MB of a training step and its share of plain PyTorch's."""
    headings = ("network", "images", "plain PyTorch, MB", *VARIANTS.values())
    lines = [summary(content["machine"]), "", _line(*headings), "|---|---|--:|--:|--:|"]
    for result in content["results"]:
        peak = result["peak_bytes"]
        shares = (f"{peak[v] / 1e6:,.0f} ({peak[v] / peak['plain']:.2f})" for v in VARIANTS)
        lines.append(
            _line(result["network"], _images(result), f"{peak['plain'] / 1e6:,.0f}", *shares)
        )
    return "\n".join(lines)


def fused(content: dict[str, Any]) -> str:
    """One line for a direction: medians and peaks before and after `fuse`, and their ratios."""
    headings = ("network", "images", "direction", "timm, ms", "fused, ms", "timm, MB", "fused, MB")
    lines = [summary(content["machine"]), "", _line(*headings), "|---|---|---|--:|--:|--:|--:|"]
    for result in content["results"]:
        cells = []
        for figures, unit in ((result["median"], 1e3), (result["peak_bytes"], 1e-6)):
            share = figures["fused"] / figures["timm"]
            cells += [
                f"{figures['timm'] * unit:,.0f}",
                f"{figures['fused'] * unit:,.0f} ({share:.2f})",
            ]
        lines.append(_line(result["network"], _images(result), result["direction"], *cells))
    return "\n".join(lines)


def _images(result: dict[str, Any]) -> str:
    return "×".join(map(str, (result["batch"], 3, *result["size"])))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
