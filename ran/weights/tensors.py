"""Which tensors of a file are weights: dense ones of dtypes that networks compute with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

#: What networks compute in, and what they count batches in.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def require_plain(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` is a dense tensor in memory of ``FLOATS`` or ``INTEGERS``.

    Meta, sparse, nested, quantised, complex and 8-bit floating-point tensors are none.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{name}: expected a tensor, got {type(value).__name__}")
    short = str(value.dtype).removeprefix("torch.")
    kinds = (
        (value.is_meta, "one on the meta device, without memory"),
        (value.is_nested, "a nested one"),
        (value.layout != torch.strided, f"one of layout {value.layout}".replace("torch.", "")),
        (value.dtype not in (*FLOATS, *INTEGERS), f"one of {short}"),
    )
    for strange, what in kinds:
        if strange:
            raise UserError(f"{name}: expected a dense tensor of real numbers, got {what}")


def require_one_dtype(source: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError that names two tensors of different floating-point dtypes, if there are."""
    floats = {key: value.dtype for key, value in tensors.items() if value.dtype in FLOATS}
    first = next(iter(floats), "")
    for name, dtype in floats.items():
        if dtype != floats[first]:
            one, other = (str(d).removeprefix("torch.") for d in (floats[first], dtype))
            raise UserError(
                f"{source}: expected one floating-point dtype, {first} is of {one} and {name} of "
                f"{other}"
            )
