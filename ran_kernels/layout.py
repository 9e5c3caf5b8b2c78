"""Memory layouts: the two that every kernel works in, and how to get there."""

import torch
from torch import Tensor


def native(t: Tensor) -> Tensor:
    """`t` itself where it is contiguous or channels_last, else a contiguous copy."""
    if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last):
        return t
    return t.contiguous()


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether element i of both lies at one place. A stride along a size of 1 does not count."""
    return all(
        size == 1 or stride == other
        for size, stride, other in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """`t` itself where it is laid out as `like` is, else a copy that is."""
    return t if same_layout(t, like) else torch.empty_like(like).copy_(t)
