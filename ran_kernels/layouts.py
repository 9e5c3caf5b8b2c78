"""The two memory layouts that kernels with a dimension to sum over are written for."""

import torch
from torch import Tensor


def dense_layout(x: Tensor) -> Tensor:
    """`x` itself where it is contiguous or channels_last, else a copy in the nearer of the two.

    csrc/common/layout.h decides in the same way; results take the layout found here.
    """
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    channels_inside = x.stride(1) < x.stride(3)
    return x.contiguous(
        memory_format=torch.channels_last if channels_inside else torch.contiguous_format
    )


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """`t` itself where it is laid out as `like` is, else a copy that is.

    A dimension of size 1 is never stepped along, so its stride does not count.
    """
    steps = zip(t.shape, t.stride(), like.stride(), strict=True)
    if all(size == 1 or stride == other for size, stride, other in steps):
        return t
    return torch.empty_like(like).copy_(t)
