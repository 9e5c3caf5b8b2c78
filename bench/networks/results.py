"""What every network benchmark ends with: a table, and a file if it is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import describe


def report(
    kind: str,
    results: list[dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    path: Path | None,
) -> None:
    """Print ``table`` of the results; write them and the machine to ``path`` as JSON."""
    content = {"kind": kind, "machine": describe(), "results": results}
    print(table(content))
    if path:
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
