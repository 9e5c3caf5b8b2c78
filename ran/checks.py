"""Checks of arguments that name what was expected and what came.

The ValueErrors are UserErrors: arguments come from command lines and files as well.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

#: Greatest side in pixels of what a network sees: above it a single image takes gigabytes.
MOST_IMAGE_SIZE = 8192
#: Of a classifier.
MOST_CLASSES = 1_000_000
#: Characters of a wrong value in an error.
SHOWN = 80


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument, what was expected and what came."""
    if not condition:
        raise UserError(f"{name}: expected {expected}, got {shown(got)}")


def shown(value: object) -> str:
    """``repr(value)`` on one line, cut where nobody would read on."""
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # an endless table; an integer of thousands of digits
        text = f"one of type {type(value).__name__} that is too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def require_choice(name: str, choices: Collection[object], got: object) -> None:
    """Raise ValueError unless ``got`` is one of ``choices``."""
    require(got in list(choices), name, f"one of {', '.join(map(repr, choices))}", got)


def is_count(value: object, least: int, most: int | None = None) -> bool:
    """Whether ``value`` is an integer (and no bool) of at least ``least`` and at most ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= least and (most is None or value <= most)


def require_count(name: str, least: int, got: object, *, most: int | None = None) -> None:
    """Raise ValueError unless ``got`` is an integer of at least ``least`` and at most ``most``."""
    end = "" if most is None else f" and at most {most}"
    require(is_count(got, least, most), name, f"an integer of at least {least}{end}", got)


def require_number(name: str, least: float, most: float, got: object) -> None:
    """Raise ValueError unless ``got`` is a number (and no bool) from ``least`` to ``most``."""
    number = isinstance(got, int | float) and not isinstance(got, bool) and least <= got <= most
    require(number, name, f"a number from {least:g} to {most:g}", got)


def require_known(name: str, known: Collection[str], got: str, *, listed: str = "") -> None:
    """Raise ValueError unless ``got`` is one of ``known``, with the nearest of them.

    ``listed``: where the reader finds them, in place of all of them.
    """
    if not isinstance(got, str) or got not in known:
        near = get_close_matches(got, known) if isinstance(got, str) else []
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        expected = f"one of {listed or ', '.join(known)}"
        raise UserError(f"{name}: expected {expected}, got {shown(got)}{hint}")


def require_probability(name: str, got: object) -> None:
    """Raise ValueError unless ``got`` is a number from 0 to 1."""
    require(isinstance(got, int | float) and 0 <= got <= 1, name, "a probability", got)


def require_image_size(size: int) -> None:
    """Raise UserError unless images of ``size`` pixels a side can be held."""
    if not is_count(size, 1, MOST_IMAGE_SIZE):
        raise UserError(f"image_size: expected 1 to {MOST_IMAGE_SIZE} pixels, got {shown(size)}")


def require_head(num_classes: int, global_pool: str) -> None:
    """Raise ValueError unless a classifier of ``num_classes`` can follow the pooling."""
    require_count("num_classes", 0, num_classes, most=MOST_CLASSES)
    require_choice("global_pool", ("avg", ""), global_pool)
    pooled = global_pool != "" or num_classes == 0
    require(pooled, "global_pool", "'avg', as there is a classifier", global_pool)


def require_finite(where: str, tensors: Mapping[str, Any]) -> None:
    """Raise UserError that names the first of the tensors that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not hasattr(tensor, "is_floating_point") or not tensor.is_floating_point():
            continue
        if tensor.is_meta:
            raise UserError(f"{where}: expected tensors with memory, {name} is on the meta device")
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        if wrong:
            raise UserError(
                f"{where}: expected finite numbers, {name} has NaN or infinity in {wrong:,} of "
                f"{tensor.numel():,}"
            )


def require_images(x: "Tensor", in_chans: int, least: int) -> None:
    """Raise ValueError unless x is (N, in_chans, H, W) of floats, H and W at least ``least``."""
    if x.ndim != 4 or x.shape[1] != in_chans or x.shape[2] < least or x.shape[3] < least:
        raise UserError(
            f"x: expected shape (N, {in_chans}, H, W) with H and W of at least {least}, "
            f"got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise UserError(f"x: expected floating point, got {x.dtype}")
