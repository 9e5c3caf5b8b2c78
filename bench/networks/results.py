"""What every network benchmark ends with: a table, and a file if it is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import describe


def write(path: Path, kind: str, results: list[dict[str, Any]]) -> None:
    """JSON of the kind of benchmark, the machine and one entry for each measurement."""
    path.write_text(json.dumps(content(kind, results), indent=1) + "\n", "utf-8")


def report(
    kind: str,
    results: list[dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    path: Path | None,
) -> None:
    """Print what ``table`` makes of the content of a result file; write that file to ``path``."""
    print(table(content(kind, results)))
    if path:
        write(path, kind, results)


def content(kind: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result file holds."""
    return {"kind": kind, "machine": describe(), "results": results}
