"""What every network benchmark's result file looks like."""

import json
from pathlib import Path
from typing import Any

from bench.machine import describe


def write(path: Path, kind: str, results: list[dict[str, Any]]) -> None:
    """JSON of the kind of benchmark, the machine and one entry for each measurement."""
    content = {"kind": kind, "machine": describe(), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
