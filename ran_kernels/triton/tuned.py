"""Tiles that were measured on a GPU, kept in a file: `ran_kernels.tune` writes it.

Nothing is measured where a product is asked for: what no file has an entry for goes by the model of
products.py. The file is read once a process, and is RAN_TILES or, for a GPU,
~/.cache/ran_kernels/tiles-NAME.json by the name of the GPU.
"""

import functools
import json
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import torch

from .products import TILES, UNPACKED_TILES, Problem, Tile, choose, tiles_of

#: Those that are being measured, and those that were asked for while somebody looks on.
_forced: dict[Problem, Tile] = {}
_asked: list[set[Problem]] = []


def tile_of(problem: Problem, device: torch.device) -> Tile:
    """The tile that `problem` takes on `device`."""
    for asked in _asked:
        asked.add(problem)
    return _forced.get(problem) or _tile_of(problem, device.type, device.index)


@functools.cache
def _tile_of(problem: Problem, kind: str, index: int | None) -> Tile:
    found = _table(kind, index).get(key_of(problem))
    return found if found in tiles_of(problem) else choose(problem)


def key_of(problem: Problem) -> str:
    """What has one tile in a file: rows count by the power of two."""
    names = ("columns", "inner", "element_size", "images", "numbers")
    rows = "inner" if problem.splits else "rows"
    sizes = {name: getattr(problem, name) for name in ("rows", *names)}
    sizes[rows] = 1 << (sizes[rows] - 1).bit_length()
    ways = "".join(f" {way}" for way in ("exact", "wide") if getattr(problem, way))
    return f"{problem.kind}{ways}: " + ", ".join(f"{name} {size}" for name, size in sizes.items())


def file_of(device: torch.device) -> Path | None:
    """Where tiles of `device` are kept; None: nowhere, as nobody has a home there."""
    if given := os.environ.get("RAN_TILES"):
        return Path(given)
    if device.type != "cuda":
        return None
    try:
        home = Path.home()
    except RuntimeError:  # in a container, of a user that it does not know
        return None
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    return home / ".cache" / "ran_kernels" / f"tiles-{name}.json"


def read(path: Path) -> dict[str, Tile]:
    """The tiles of a file by `key_of`, none where there is no file. What is no entry of a tile that
    is there today is left out, with a warning."""
    try:
        entries = json.loads(path.read_text())["tiles"].items()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path}: expected tiles as JSON, got {error!r}", stacklevel=2)
        return {}
    known = [tile for of in (TILES, UNPACKED_TILES) for tiles in of.values() for tile in tiles]
    found = {key: tile for key, entry in entries for tile in known if [*astuple(tile)] == entry}
    if len(found) < len(entries):
        warnings.warn(
            f"{path}: expected tiles of this version, got {len(entries) - len(found)} others",
            stacklevel=2,
        )
    return found


def write(path: Path, tiles: dict[str, Tile]) -> None:
    """Adds `tiles` to those of the file."""
    merged = {**read(path), **tiles}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"tiles": {key: astuple(merged[key]) for key in sorted(merged)}}, indent=1)
    # Another process may read it meanwhile, or write it: one in a container may have our number.
    part = path.with_suffix(f".{uuid.uuid4().hex}")
    part.write_text(text + "\n")
    part.replace(path)
    forget()


def forget() -> None:
    """The file is read again."""
    _table.cache_clear()
    _tile_of.cache_clear()


@functools.cache
def _table(kind: str, index: int | None) -> dict[str, Tile]:
    path = file_of(torch.device(kind, index) if index is not None else torch.device(kind))
    return {} if path is None else read(path)


@contextmanager
def asked() -> Iterator[set[Problem]]:
    """What is asked for inside."""
    found: set[Problem] = set()
    _asked.append(found)
    try:
        yield found
    finally:
        _asked.remove(found)


@contextmanager
def forced(problem: Problem, tile: Tile) -> Iterator[None]:
    """`problem` takes `tile` inside."""
    _forced[problem] = tile
    try:
        yield
    finally:
        del _forced[problem]
