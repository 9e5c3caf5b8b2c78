"""What a setting may be: its type, by its annotation, and its range."""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import MOST_CLASSES, MOST_IMAGE_SIZE, require_image_size, shown
from ..errors import UserError

#: As of a path on Linux.
_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; without the ends that ``open`` names."""

    least: float
    most: float
    open: str = ""

    def holds(self, value: float) -> bool:
        if not self.least <= value <= self.most:  # and so no NaN
            return False
        return not (
            (value == self.least and "least" in self.open)
            or (value == self.most and "most" in self.open)
        )

    def __str__(self) -> str:
        least, most = (f"{end:,.12g}" for end in (self.least, self.most))
        if not self.open:
            return f"{least} to {most}"
        low = "more than" if "least" in self.open else "at least"
        high = "less than" if "most" in self.open else "at most"
        return f"{low} {least} and {high} {most}"


_MANY = Range(1, 1e9)
_SHARE = Range(0, 1, "most")
#: By the setting, of each number in it; the times are checked against the training's length.
RANGES = {
    **dict.fromkeys(("epochs", "iterations", "batch_size", "accumulate"), _MANY),
    "checkpoint_steps": _MANY,
    "keep_every": Range(0, 1e9),
    "seed": Range(0, 2**32 - 1),
    # up to what float32 has no trouble with, and no training any use for
    "lr": Range(0, 1e4, "least"),
    "weight_decay": Range(0, 1e4),
    "clip_norm": Range(0, 1e9),
    **dict.fromkeys(("momentum", "decay_rate", "label_smoothing", "ema"), _SHARE),
    "mixup": Range(0, 1000),
    "cutmix": Range(0, 1000),
    "color_jitter": Range(0, 10),
    "cutout": Range(0, MOST_IMAGE_SIZE),
    "scale": Range(0, 1, "least"),
    "ratio": Range(0.01, 100),
    "num_classes": Range(1, MOST_CLASSES),
    # each is a thread or process of its own, made at once
    "threads": Range(1, 1024),
    "workers": Range(0, 256),
    "timeout": Range(5, 1e7),
}

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "Path": "a path",
    "dict[str, typing.Any]": "a table",
    "list[float]": "a list of numbers",
}


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises UserError for the first value that is not of its type or out of its range."""
    for name, value in values.items():
        hint = hints[name]
        if not _fits(value, hint):
            kind = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
            kind = kind.replace(" | None", "").replace("pathlib.", "")
            raise UserError(f"{name}: expected {_WORDS.get(kind, kind)}, got {shown(value)}")
        if isinstance(value, str | Path):
            _check_text(name, str(value))
        if name == "image_size" and value is not None:
            require_image_size(value)
        if name in RANGES and value is not None:
            check_range(name, value, RANGES[name])


def _check_text(name: str, text: str) -> None:
    if "\0" in text:
        raise UserError(f"{name}: expected text without a NUL, got {shown(text)}")
    if len(text) > _LONGEST_TEXT:
        raise UserError(
            f"{name}: expected at most {_LONGEST_TEXT} characters, got {len(text)}: {shown(text)}"
        )


def check_range(name: str, value: Any, range: Range) -> None:
    """Raises UserError unless the number, or each in the list, is in the range."""
    numbers = value if isinstance(value, list) else [value]
    if not all(map(range.holds, numbers)):
        each = "numbers of " if isinstance(value, list) else ""
        raise UserError(f"{name}: expected {each}{range}, got {shown(value)}")


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    origin = typing.get_origin(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, float) for item in value)
    if isinstance(value, bool):  # also an int to Python
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)
