"""Writing files so that a reader never sees half of one."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a new path beside ``path`` to write to; renamed to ``path`` if the block succeeds.

    If the block raises, the new file is removed and ``path`` is as it was. The new name keeps the
    suffix, from which several writers choose the format.
    """
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` as indented JSON in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path, *, format: str, version: int) -> dict[str, Any]:
    """Reads a JSON object that says ``{"format": format, "version": version, ...}``.

    Raises:
        UserError: the file is missing, is not such an object, or is of a newer version.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected a {format} file, found nothing there") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: expected a {format} file, cannot read it: {error}") from None
    if not isinstance(content, dict) or content.get("format") != format:
        raise UserError(f'{path}: expected JSON with "format": "{format}"')
    if content.get("version") != version:
        raise UserError(
            f"{path}: expected version {version} of {format}, got {content.get('version')!r}"
        )
    return content
