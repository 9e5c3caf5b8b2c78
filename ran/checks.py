"""Checks of arguments that name what was expected and what came."""

from collections.abc import Collection


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument, what was expected and what came."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def require_choice(name: str, choices: Collection[object], got: object) -> None:
    """Raise ValueError unless ``got`` is one of ``choices``."""
    require(got in list(choices), name, f"one of {', '.join(map(repr, choices))}", got)


def is_count(value: object, least: int) -> bool:
    """Whether ``value`` is an integer (and no bool) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_count(name: str, least: int, got: object) -> None:
    """Raise ValueError unless ``got`` is an integer of at least ``least``."""
    require(is_count(got, least), name, f"an integer of at least {least}", got)
