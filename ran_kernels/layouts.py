"""The two layouts that operators on images have kernels for, and how a tensor gets into one."""

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_of(t: Tensor) -> torch.memory_format:
    """channels_last where a position's channels lie side by side in memory, contiguous otherwise.

    The rule for results, whatever the strides of the operand that they follow: csrc/common/layout.h
    has it in C++.
    """
    channels_last = t.stride(1) == 1 and t.stride(3) != 1
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_image(size: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised (N, C, H, W) in the layout that results take from `like`."""
    return torch.empty(
        size, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like)
    )


def dense_layout(x: Tensor) -> Tensor:
    """`x` itself where it is dense in the layout that results take from it, else a copy that is."""
    return x.contiguous(memory_format=memory_format_of(x))


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t` in `dtype`. A copy of an expanded (N, C, H, W) stays in the layout that results take.

    PyTorch's own is contiguous then, whatever the order of the strides that are not 0.
    """
    steps = zip(t.shape, t.stride(), strict=True)
    if t.dim() == 4 and any(size > 1 and stride == 0 for size, stride in steps):
        return t.to(dtype, memory_format=memory_format_of(t))
    return t.to(dtype)


def ordered_as(t: Tensor, like: Tensor) -> Tensor:
    """`t` itself where its strides come in the order of those of `like`, else a dense copy of it.

    Made of operations that can be differentiated, transformed and traced, for the reference.
    """
    steps = zip(t.shape, t.stride(), like.stride(), strict=True)
    if all(size == 1 or stride == other for size, stride, other in steps):
        return t
    order = sorted(range(t.dim()), key=lambda d: (-like.stride(d), -t.shape[d]))
    inverse = [order.index(d) for d in range(t.dim())]
    return t.permute(order).contiguous().permute(inverse)


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """`t` itself where it is laid out as `like` is, else a copy that is.

    A dimension of size 1 is never stepped along, so its stride does not count.
    """
    steps = zip(t.shape, t.stride(), like.stride(), strict=True)
    if all(size == 1 or stride == other for size, stride, other in steps):
        return t
    return torch.empty_like(like).copy_(t)
