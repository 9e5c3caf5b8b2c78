"""Checks of arguments that name what was expected and what came."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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


def require_known(name: str, known: Collection[str], got: str, *, listed: str = "") -> None:
    """Raise ValueError unless ``got`` is one of ``known``, with the nearest of them.

    ``listed``: where the reader finds them, in place of all of them.
    """
    if got not in known:
        near = get_close_matches(got, known) if isinstance(got, str) else []
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"{name}: expected one of {listed or ', '.join(known)}, got {got!r}{hint}")


def require_probability(name: str, got: object) -> None:
    """Raise ValueError unless ``got`` is a number from 0 to 1."""
    require(isinstance(got, int | float) and 0 <= got <= 1, name, "a probability", got)


def require_head(num_classes: int, global_pool: str) -> None:
    """Raise ValueError unless a classifier of ``num_classes`` can follow the pooling."""
    require_count("num_classes", 0, num_classes)
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
        raise ValueError(
            f"x: expected shape (N, {in_chans}, H, W) with H and W of at least {least}, "
            f"got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {x.dtype}")
