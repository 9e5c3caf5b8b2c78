"""The figures of a benchmark's result, from its samples."""

import statistics
from typing import Any


def row(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of one result: milliseconds, ratios, fraction of the floor, peak MB."""
    median = {name: statistics.median(values) for name, values in result["samples"].items()}
    # A copy reads and writes the big tensor once: 2 S in median["copy"] seconds.
    floor = result["floor_traffic"] / 2 * median["copy"]
    return {
        "ms": median["ours"] * 1e3,
        "to_eager": median["ours"] / median["eager"],
        "to_compile": median["ours"] / median["compile"],
        "to_floor": median["ours"] / floor,
        "peak_mb": result["peak_bytes"]["ours"] / 1e6,
        "peak_to_eager": result["peak_bytes"]["ours"] / max(1, result["peak_bytes"]["eager"]),
    }
