"""The figures of a benchmark's result, from its samples."""

import math
import statistics
from typing import Any


def row(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of one result: milliseconds, ratios, fraction of the floor, peak MB.

    A ratio to what was not timed, as its results were wrong, is NaN.
    """
    median = {name: statistics.median(values) for name, values in result["samples"].items()}
    # A copy reads and writes the big tensor once: 2 S in median["copy"] seconds.
    floor = result["floor_traffic"] / 2 * median["copy"]
    return {
        "ms": median["ours"] * 1e3,
        "to_eager": median["ours"] / median["eager"],
        "to_compile": median["ours"] / median.get("compile", math.nan),
        "to_floor": median["ours"] / floor,
        "peak_mb": result["peak_bytes"]["ours"] / 1e6,
        "peak_to_eager": result["peak_bytes"]["ours"] / max(1, result["peak_bytes"]["eager"]),
    }


def ratio(value: float) -> str:
    """A ratio of ``row`` as tables show it."""
    return "wrong" if math.isnan(value) else f"{value:.2f}"


def right(values: list[float]) -> list[float]:
    """Those of a ratio's values that are numbers."""
    return [value for value in values if not math.isnan(value)]
