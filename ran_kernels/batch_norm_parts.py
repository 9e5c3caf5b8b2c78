"""Batch normalisation's passes over the big tensors, as operators with optional terms.

`ran_kernels.batch_norm` makes one autograd node of them. With invstd = 1 / √(variance + eps),
xhat = (x - mean) invstd, and the channels' numbers (C,) in the dtype that x is computed in,
float32, or float64 where x is of that dtype:

1. ``batch_norm_statistics``: mean and biased variance of each channel over N, H, W, of x or of the
   sum x + addend as it is rounded to its dtype, which is the first result. Without `addend` that is
   an empty tensor. Both are 0 of no values.
2. ``batch_norm_apply``: relu(xhat weight + bias + shortcut).
3. ``batch_norm_reduce``: sum_grad = Σ g and sum_grad_xhat = Σ g xhat, the gradients of bias and
   weight, where g is grad, and with `relu` what the ReLU lets through. Its result is `out`, or
   without it computed again, to the bits of the forward. With `out`, g is the first result, for
   pass 4 and for the shortcut; without it that is an empty tensor.
4. ``batch_norm_grad``: invstd weight (g - (sum_grad + xhat sum_grad_xhat) / count) + addend, and
   without sums, for statistics that do not depend on x, invstd weight g + addend. g is grad, or
   with `relu` what the ReLU, whose result is computed again, lets through.

Every term that is None is left out; weight is 1 then. As in PyTorch a ReLU passes a gradient on
unless its result, as rounded to its dtype, is at most 0: a NaN lets it through.
"""

import torch
from torch import Tensor

from .layouts import dense_layout
from .library import OPERATORS, define

# The functions that people call are made of all four, on one backend.
OPERATORS.append("batch_norm")


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What tensors of `dtype` are computed in, and the channels' numbers are of."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(like: Tensor, count: int) -> Tensor:
    """Uninitialised numbers of channels (count,), in the dtype that `like` is computed in."""
    return like.new_empty(count, dtype=computing_dtype(like.dtype))


def _fake_statistics(x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if addend is None else torch.empty_like(dense_layout(x))
    return total, per_channel(x, x.shape[1]), per_channel(x, x.shape[1])


def _fake_apply(
    x: Tensor,
    shortcut: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    return torch.empty_like(dense_layout(x))


def _fake_reduce(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    masked = x.new_empty(0) if out is None else torch.empty_like(dense_layout(x))
    return masked, per_channel(x, x.shape[1]), per_channel(x, x.shape[1])


def _fake_grad(
    grad: Tensor,
    x: Tensor,
    addend: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sum_grad: Tensor | None,
    sum_grad_xhat: Tensor | None,
    count: int,
    eps: float,
    relu: bool,
) -> Tensor:
    return torch.empty_like(dense_layout(x))


BATCH_NORM_STATISTICS = define(
    "batch_norm_statistics",
    "(Tensor x, Tensor? addend) -> (Tensor sum, Tensor mean, Tensor variance)",
    fake=_fake_statistics,
    file="batch_norm",
)
BATCH_NORM_APPLY = define(
    "batch_norm_apply",
    "(Tensor x, Tensor? shortcut, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias,"
    " float eps, bool relu) -> Tensor",
    fake=_fake_apply,
    file="batch_norm",
)
BATCH_NORM_REDUCE = define(
    "batch_norm_reduce",
    "(Tensor grad, Tensor x, Tensor? out, Tensor mean, Tensor variance, Tensor? weight,"
    " Tensor? bias, float eps, bool relu)"
    " -> (Tensor masked, Tensor sum_grad, Tensor sum_grad_xhat)",
    fake=_fake_reduce,
    file="batch_norm",
)
BATCH_NORM_GRAD = define(
    "batch_norm_grad",
    "(Tensor grad, Tensor x, Tensor? addend, Tensor mean, Tensor variance, Tensor? weight,"
    " Tensor? bias, Tensor? sum_grad, Tensor? sum_grad_xhat, SymInt count, float eps, bool relu)"
    " -> Tensor",
    fake=_fake_grad,
    file="batch_norm",
)
