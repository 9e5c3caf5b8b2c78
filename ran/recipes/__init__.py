"""Trainings with a name: a TOML file each, with the keys of ``ran.training.TrainingSettings``."""

import sys
from importlib.resources import files
from typing import Any

from ..errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def list_recipes() -> list[str]:
    """The names that ``load_recipe`` knows."""
    entries = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of the recipe called ``name``. Raises UserError if there is none."""
    names = list_recipes()
    if name not in names:
        raise UserError(f"recipe: expected one of {', '.join(names)}, got {name!r}")
    return tomllib.loads((files(__name__) / f"{name}.toml").read_text("utf-8"))
