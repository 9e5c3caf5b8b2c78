"""What the Triton kernels share."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


def device_of(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes t's GPU current: Triton launches on the current device. Nothing to do on the CPU."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def contiguous(t: Tensor | None) -> Tensor | None:
    """`t` or a contiguous copy of it; None, an absent argument, stays None."""
    return None if t is None else t.contiguous()


def accumulator(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised tensor for partial sums, in the type that `widen` gives `like`'s values."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)


def unit_of(size: int) -> int:
    """A kernel's UNIT: the power of two, 16 at most, that the inner size is a multiple of."""
    return min(size & -size, 16)


@triton.jit
def widen(x):
    """The type arithmetic is done in: float64 stays, everything else becomes float32."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), in float32 or float64 (tl.sigmoid has no float64)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gate(logits, index, count):
    """sigmoid of logits[index], for index below count."""
    return sigmoid(widen(tl.load(logits + index, mask=index < count, other=0.0)))
