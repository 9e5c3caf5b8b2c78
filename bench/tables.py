"""Writes the documents' tables of measurements, and the pictures, from the files in bench/results.

``python -m bench.tables`` rewrites them. A table stands between ``<!-- table: NAME -->`` and
``<!-- end -->``, where NAME is a file of bench/results without its ending; ``NAME rows`` gives
every row of it, and not a summary, ``NAME profile`` where a call's time goes.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import ablation, ceilings, training
from bench.kernels.figures import ratio, right, row
from bench.machine import summary
from bench.markdown import line
from bench.networks.tables import (
    deployed,
    fused,
    memory,
    profiles,
    scale,
    speed,
    speed_rows,
    traffic,
)
from bench.plots import PICTURES, draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (ROOT / "README.md", RESULTS / "README.md")
_BLOCK = re.compile(r"(<!-- table: ([\w.-]+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def kernels(content: dict[str, Any]) -> str:
    """One line for an operator and layout, with the range of each ratio over its shapes."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for result in content["results"]:
        group = groups.setdefault((f"`{result['op']}`", result["layout"]), {})
        group.setdefault(result["direction"], []).append(row(result))
    lines = _head(content["machine"], "| operator | layout |", "")
    for names, directions in groups.items():
        cells = [
            _range([figures[of] for figures in directions[direction]])
            if direction in directions
            else ""
            for direction in DIRECTIONS
            for of in RATIOS
        ]
        lines.append(line(*names, *cells))
    return "\n".join(lines)


def kernel_rows(content: dict[str, Any]) -> str:
    """One line for an operator, shape, layout and dtype."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for result in content["results"]:
        shape = "×".join(map(str, (result["batch"], *result["stage"])))
        key = (f"`{result['op']}`", shape, result["layout"], result["dtype"])
        groups.setdefault(key, {})[result["direction"]] = row(result)
    lines = _head(content["machine"], "| operator | shape | layout | dtype |", " ms |")
    for names, directions in groups.items():
        cells = []
        for direction in DIRECTIONS:
            figures = directions.get(direction)
            cells += [ratio(figures[name]) if figures else "" for name in ("ms", *RATIOS)]
        lines.append(line(*names, *cells))
    return "\n".join(lines)


DIRECTIONS = ("forward", "forward+backward")
RATIOS = ("to_eager", "to_compile", "to_floor")


def _head(machine: dict[str, Any], names: str, time: str) -> list[str]:
    """What the table was measured on, its headings and the line below them."""
    columns = "".join(
        f"{f' {d}{time}' if time else ''} {d} × eager | × compile | × floor |"
        for d in ("fwd", "fwd+bwd")
    )
    heading = names + columns
    named = names.count("|") - 1
    return [
        summary(machine),
        "",
        heading,
        "|" + "---|" * named + "--:|" * (heading.count("|") - 1 - named),
    ]


def _range(values: list[float]) -> str:
    """From the least to the greatest of those that are numbers."""
    values = right(values)
    if not values:
        return ratio(math.nan)
    return f"{min(values):.2f}–{max(values):.2f}"


#: By the `kind` of a result file, and what the table asks for.
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "kernels": kernels,
    "kernels rows": kernel_rows,
    "network memory": memory,
    "network traffic": traffic,
    "network fuse": fused,
    "network speed": speed,
    "network speed rows": speed_rows,
    "network speed profile": profiles,
    "network deploy profile": profiles,
    "network scale": scale,
    "network deploy": deployed,
    "ceilings": ceilings.table,
    "ablation": ablation.table,
    "training": training.training,
}


def filled(text: str) -> str:
    """`text` with every table in it made anew.

    Raises:
        ValueError: a table names no file of bench/results, or one of an unknown kind.
    """

    def fill(block: re.Match[str]) -> str:
        path = RESULTS / f"{block[2]}.json"
        if not path.is_file():
            raise ValueError(f"table {block[2]}: expected a file {path.name} in bench/results")
        content = json.loads(path.read_text())
        kind = f"{content['kind']} {block[3]}" if block[3] else content["kind"]
        if kind not in TABLES:
            raise ValueError(f"table {block[2]}: expected one of {sorted(TABLES)}, got {kind!r}")
        return f"{block[1]}{TABLES[kind](content)}\n{block[4]}"

    return _BLOCK.sub(fill, text)


def main() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        if content["kind"] in PICTURES:
            draw(content, path.stem, RESULTS)


if __name__ == "__main__":
    main()
