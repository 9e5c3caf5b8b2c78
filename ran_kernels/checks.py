"""Argument checks: each error names the argument, what was expected and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layouts import cast

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def require_tensor(name: str, value: object, dims: int = 4) -> None:
    """Raises TypeError unless `value` is a floating-point tensor, ValueError unless `dims`-D."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected float64, float32, float16 or bfloat16, got {_short(value.dtype)}"
        )
    if value.dim() != dims:
        shape = "(N, C, H, W)" if dims == 4 else f"{dims} dimensions"
        raise ValueError(f"{name}: expected {shape}, got shape {tuple(value.shape)}")


def require_device(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless both are on one device."""
    if value.device != like.device:
        raise ValueError(
            f"{name}: expected device {like.device} as {like_name}, got {value.device}"
        )


def require_same_image(name: str, value: object, like_name: str, like: object) -> None:
    """Raises as `require_tensor` for both, ValueError unless shapes and devices are the same."""
    require_tensor(like_name, like)
    require_tensor(name, value)
    assert isinstance(value, Tensor)
    assert isinstance(like, Tensor)
    require_shape(name, value, like.shape, f"as {like_name}")
    require_device(name, value, like_name, like)


def require_shape(name: str, value: Tensor, expected: tuple[int, ...], why: str) -> None:
    """Raises ValueError unless `value` has the shape `expected`, which comes from `why`."""
    if value.shape != expected:
        raise ValueError(
            f"{name}: expected shape {tuple(expected)} {why}, got {tuple(value.shape)}"
        )


def require_size(name: str, value: object) -> tuple[int, int]:
    """`value` as (height, width). Raises TypeError unless it is a pair of integers, ValueError
    unless both are positive."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(n, (int, torch.SymInt)) for n in pair):
        raise TypeError(f"{name}: expected a pair of integers (height, width), got {value!r}")
    if pair[0] < 1 or pair[1] < 1:
        raise ValueError(f"{name}: expected a height and width of at least 1, got {pair}")
    return pair


def require_number(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a number, or a tensor as one."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, Tensor)):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def require_not_empty(name: str, value: Tensor, dims: tuple[int, ...], what: str) -> None:
    """Raises ValueError if one of the dimensions `dims` is empty; `what` says what is missing."""
    if any(value.shape[d] == 0 for d in dims):
        raise ValueError(f"{name}: expected {what}, got shape {tuple(value.shape)}")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the dtype that PyTorch's type promotion gives for them together."""
    dtype = tensors[0].dtype
    if all(tensor.dtype == dtype for tensor in tensors):
        return tensors
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(cast(tensor, dtype) for tensor in tensors)


def autocast_dtype(t: Tensor) -> torch.dtype:
    """What autocast, where it is on, casts `t` to as an operand of a convolution."""
    device = t.device.type
    if device == "meta" or t.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return t.dtype
    return torch.get_autocast_dtype(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
