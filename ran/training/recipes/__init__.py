"""Trainings with a name: a TOML file each, with the keys of ``TrainingSettings``.

Two keys more say what a recipe is and where it comes from: ``about`` and ``source``.
"""

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ...errors import UserError
from ..ranges import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """A published training, or one of this project's.

    Attributes:
        name: what ``ran train`` calls it.
        about: what it is, in a line.
        source: where its settings were published.
        settings: keys and values of ``ran.training.settings.TrainingSettings``.
    """

    name: str
    about: str
    source: str
    settings: dict[str, Any]


def list_recipes() -> list[str]:
    """The names that ``load_recipe`` knows."""
    entries = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises UserError if there is none."""
    names = list_recipes()
    if name not in names:
        raise UserError(f"recipe: expected one of {', '.join(names)}, got {name!r}")
    settings = tomllib.loads((files(__name__) / f"{name}.toml").read_text("utf-8"))
    return Recipe(name, settings.pop("about"), settings.pop("source"), settings)


def combine(recipe: str | None, *changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe (or none), with changes over them; the later ones win.

    A table, such as ``model_options``, is changed key by key. A new length in ``epochs`` takes
    the place of a recipe's ``iterations``. The recipe's times (``warmup``, ``milestones``,
    ``mix_until``) stay at their share of the length, unless they are changed too.
    """
    published = dict(load_recipe(recipe).settings) if recipe else {}
    settings = dict(published)
    for change in changes:
        if "epochs" in change and "iterations" not in change:
            settings.pop("iterations", None)
        for key, value in change.items():
            old = settings.get(key)
            if isinstance(value, dict) and isinstance(old, dict):
                value = {**old, **value}
            settings[key] = value
    new, old = _length(settings), _length(published)
    if new and old and new != old:
        kept = published.keys() - {key for change in changes for key in change}
        for key in kept & {"warmup", "milestones", "mix_until"}:
            time = published[key]
            scaled = (
                [part * new / old for part in time] if key == "milestones" else time * new / old
            )
            settings[key] = scaled
    return settings


def _length(settings: dict[str, Any]) -> float | None:
    """In epochs or in iterations; None where it is not given or is no length."""
    length = settings.get("iterations") or settings.get("epochs")
    return length if isinstance(length, int | float) and length > 0 else None


def parse_overrides(options: Iterable[str]) -> dict[str, Any]:
    """Settings from ``KEY=VALUE`` lines, in which a dot leads into a table.

    VALUE is written as in a recipe (``0.1``, ``true``, ``[30, 60]``, ``"text"``) or is a Python
    literal (``True``, ``None``); anything else is text.

    Raises:
        UserError: a line is something else.
    """
    settings: dict[str, Any] = {}
    for option in options:
        key, equals, text = (part.strip() for part in option.partition("="))
        *tables, last = key.split(".")
        if not equals or not text or not all(name.isidentifier() for name in [*tables, last]):
            raise UserError(f"set: expected KEY=VALUE, got {shown(option)}")
        target = settings
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise UserError(f"set: expected a table in {key}, {table} is none")
        target[last] = _value(key, text)
    return settings


def _value(key: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (RecursionError, ValueError):  # the second also of integers of thousands of digits
        pass
    try:
        return ast.literal_eval(text)
    except (RecursionError, MemoryError):
        raise UserError(f"{key}: expected a value that ends, got {shown(text)}") from None
    except (SyntaxError, ValueError):
        return text
