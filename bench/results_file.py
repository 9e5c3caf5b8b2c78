"""The one format of a result file: JSON of what was measured, on what, and an entry each time."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import UNKNOWN, describe
from ran.files import replacing

#: A list or an object without another in it.
_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")


class Record:
    """The entries of a result file, which is written again after each.

    What the file has already, of the same machine and commit, is kept and not measured again: the
    same command goes on where it was cut.

    Args:
        kind: of benchmark, which says how its tables and pictures are made.
        path: JSON file to read and to write; None keeps the entries in memory.
    """

    def __init__(self, kind: str, path: Path | None) -> None:
        self.content = content(kind, [])
        self._path = path
        if path and path.is_file():
            self._keep(json.loads(path.read_text("utf-8")), path)

    def add(self, measure: Callable[..., Iterator[dict[str, Any]]], **key: Any) -> None:
        """Appends an entry of ``key`` and what ``measure(**key)`` yields, unless there is one.

        What is yielded takes the place of what was before it, and is written at once; an entry that
        was cut before its last has "unfinished" set, and is measured again.
        """
        entries = self.content["results"]
        found = [entry for entry in entries if all(entry.get(name) == key[name] for name in key)]
        if any(not entry.get("unfinished") for entry in found):
            return
        for entry in found:
            entries.remove(entry)
        entry = {**key, "unfinished": True}
        for measured in measure(**key):
            if entry not in entries:
                entries.append(entry)
            entry.update(measured)
            self._write()
        del entry["unfinished"]
        self._write()
        print(*(f"{name} {value}" for name, value in key.items()), sep=", ", file=sys.stderr)

    def _write(self) -> None:
        if self._path:
            write(self._path, self.content)

    def _keep(self, found: dict[str, Any], path: Path) -> None:
        same = all(
            found["machine"].get(name) == value
            for name, value in self.content["machine"].items()
            if name != "date"
        )
        # Of a tree with changes, or without git, nobody can tell whether they are the same.
        commit = self.content["machine"]["commit"]
        same = same and commit != UNKNOWN and not commit.endswith("-dirty")
        if same and found["kind"] == self.content["kind"]:
            self.content["results"] = found["results"]
            print(f"{path}: going on after {len(found['results'])} entries", file=sys.stderr)
        else:
            print(f"{path}: of another machine, commit or kind, begun anew", file=sys.stderr)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a result file, with what holds no other list or object on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # A line break within a string is escaped: those found are the layout's.
    text = _INNERMOST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    with replacing(path) as partial:
        partial.write_text(text + "\n", "utf-8")


def report(
    kind: str,
    results: list[dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    path: Path | None,
) -> None:
    """Print what ``table`` makes of the content of a result file; write that file to ``path``."""
    print(table(content(kind, results)))
    if path:
        write(path, content(kind, results))


def content(kind: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What a result file holds."""
    return {"kind": kind, "machine": describe(), "results": results}
