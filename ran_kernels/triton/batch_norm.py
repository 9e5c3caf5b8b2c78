"""Triton's four passes of batch normalisation: `ran_kernels.batch_norm_parts`."""

import torch
from torch import Tensor

from ..layouts import dense_layout, in_layout_of
from .batch_norm_kernels import (
    batch_norm_apply_kernel,
    batch_norm_grad_kernel,
    batch_norm_reduce_finish_kernel,
    batch_norm_reduce_kernel,
    batch_norm_statistics_finish_kernel,
    batch_norm_statistics_kernel,
)
from .common import accumulator, contiguous, device_of
from .tiling import REDUCTION_BYTES, over_batch, pointwise

# The greatest result of the ReLU's argument that is 0 once it is rounded to the dtype, as kVanishes
# in csrc/common/batch_norm.h.
VANISHES = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}


def batch_norm_statistics(x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Implements ``ran::batch_norm_statistics.triton``."""
    x = dense_layout(x)
    sum = x.new_empty(0) if addend is None else torch.empty_like(x)
    mean, variance = (accumulator(x, (x.shape[1],)) for _ in range(2))
    if not x.numel():
        return sum, mean.zero_(), variance.zero_()  # of no elements
    tiling = over_batch(x)
    final = tiling.splits == 1
    parts = (tiling.splits, tiling.rows)
    with device_of(x):
        means, squares = mean, variance
        if not final:
            means, squares = x.new_empty(parts, dtype=torch.float64), accumulator(x, parts)
        batch_norm_statistics_kernel[tiling.grid](
            x,
            None if addend is None else in_layout_of(addend, x),
            None if addend is None else sum,
            *(means, squares),
            FINAL=final,
            **tiling.arguments(),
        )
        if not final:
            grid, arguments = tiling.finish()
            batch_norm_statistics_finish_kernel[grid](
                *(means, squares, mean, variance), **tiling.walk(), **arguments
            )
    return sum, mean, variance


def batch_norm_apply(
    x: Tensor,
    shortcut: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    """Implements ``ran::batch_norm_apply.triton``."""
    x = dense_layout(x)
    out = torch.empty_like(x)
    if x.numel():
        tiling = pointwise(x, REDUCTION_BYTES)
        with device_of(x):
            batch_norm_apply_kernel[tiling.grid](
                x,
                None if shortcut is None else in_layout_of(shortcut, x),
                *map(contiguous, (mean, variance, weight, bias)),
                out,
                EPS=eps,
                RELU=relu,
                **tiling.arguments(),
            )
    return out


def batch_norm_reduce(
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
    """Implements ``ran::batch_norm_reduce.triton``."""
    x = dense_layout(x)
    masked = x.new_empty(0) if out is None else torch.empty_like(x)
    sum_grad, sum_grad_xhat = (accumulator(x, (x.shape[1],)) for _ in range(2))
    if not x.numel():
        return masked, sum_grad.zero_(), sum_grad_xhat.zero_()
    tiling = over_batch(x)
    final = tiling.splits == 1
    parts = (tiling.splits, tiling.rows)
    variance = variance.contiguous()
    with device_of(x):
        totals, dots = sum_grad, sum_grad_xhat
        if not final:
            totals, dots = accumulator(x, parts), accumulator(x, parts)
        batch_norm_reduce_kernel[tiling.grid](
            in_layout_of(grad, x),
            x,
            None if out is None else in_layout_of(out, x),
            *map(contiguous, (mean, variance, weight, bias)),
            None if out is None else masked,
            *(totals, dots),
            FINAL=final,
            EPS=eps,
            RELU=relu,
            VANISHES=VANISHES.get(x.dtype, 0.0),
            **tiling.arguments(),
        )
        if not final:
            grid, arguments = tiling.finish()
            batch_norm_reduce_finish_kernel[grid](
                *(totals, dots, variance, sum_grad, sum_grad_xhat), EPS=eps, **arguments
            )
    return masked, sum_grad, sum_grad_xhat


def batch_norm_grad(
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
    """Implements ``ran::batch_norm_grad.triton``."""
    x = dense_layout(x)
    grad_x = torch.empty_like(x)
    if x.numel():
        tiling = pointwise(x, REDUCTION_BYTES)
        with device_of(x):
            batch_norm_grad_kernel[tiling.grid](
                in_layout_of(grad, x),
                x,
                None if addend is None else in_layout_of(addend, x),
                *map(contiguous, (mean, variance, weight, bias, sum_grad, sum_grad_xhat)),
                grad_x,
                count,
                EPS=eps,
                RELU=relu,
                VANISHES=VANISHES.get(x.dtype, 0.0),
                **tiling.arguments(),
            )
    return grad_x
