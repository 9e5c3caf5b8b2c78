"""Triton's passes of `ran_kernels.norm_relu_conv`, whose parts norm_relu_conv_parts.py defines."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..norm_relu_conv_parts import new_image, out_size
from .batch_norm import VANISHES
from .common import accumulator, contiguous, device_of
from .norm_relu_conv_kernels import (
    GROUP,
    add_kernel,
    merge_kernel,
    norm_relu_conv_grad_kernel,
    norm_relu_conv_kernel,
    norm_relu_conv_reduce_kernel,
    norm_relu_conv_weight_kernel,
)
from .products import Problem, Tile, convolution_precision, precision_of, splits_of
from .tuned import tile_of

# Columns that a program of the second stage puts together.
FINISH_COLUMNS = 32


def _geometry(size: tuple[int, int], stride: int) -> dict[str, int]:
    out_height, out_width = out_size(size, stride)
    return {
        "height": size[0],
        "width": size[1],
        "out_height": out_height,
        "out_width": out_width,
        "STRIDE": stride,
    }


def _blocks(tile: Tile) -> dict[str, int]:
    return {
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_INNER": tile.inner,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
    }


def plan(
    problem: Problem, size: tuple[int, int], stride: int, device: torch.device
) -> tuple[int, tuple[int], dict[str, Any]]:
    """Rows of tiles, the grid, and the arguments that follow from shapes alone, of a product whose
    rows are positions.

    Args:
        size: height and width of the convolution's input.
    """
    tile = tile_of(problem, device)
    row_tiles = triton.cdiv(problem.rows, tile.rows)
    column_tiles = triton.cdiv(problem.columns, tile.columns)
    return (
        row_tiles,
        (row_tiles * column_tiles,),
        {
            "rows": problem.rows,
            "column_tiles": column_tiles,
            "INNER": problem.inner,
            "COLUMNS": problem.columns,
            **_geometry(size, stride),
            **_blocks(tile),
        },
    )


def plan_weight(
    problem: Problem, size: tuple[int, int], stride: int, device: torch.device
) -> tuple[int, tuple[int], dict[str, Any]]:
    """As `plan`, of a weight's gradient (rows, columns), which sums over `inner` positions; how
    many programs share those, first."""
    tile = tile_of(problem, device)
    splits, steps = splits_of(problem, tile)
    column_tiles = triton.cdiv(problem.columns, tile.columns)
    tiles = triton.cdiv(problem.rows, tile.rows) * column_tiles
    return (
        splits,
        (splits * tiles,),
        {
            "rows": problem.inner,
            "column_tiles": column_tiles,
            "OUT": problem.rows,
            "COLUMNS": problem.columns,
            "STEPS": steps,
            **_geometry(size, stride),
            **_blocks(tile),
        },
    )


def _aligned(t: Tensor) -> Tensor:
    """`t`, or a copy that begins at a multiple of 16 bytes: elsewhere kernels read an element at a
    time, of which `tiles_of` does not know."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _last(t: Tensor) -> Tensor:
    return _aligned(t.contiguous(memory_format=torch.channels_last))


def _matrix(conv: Tensor) -> Tensor:
    return _aligned(conv.contiguous())


def _last_or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None else _last(t)


def _options(t: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    # The interpreter keeps bfloat16 as integers, and would multiply those.
    return {"PRECISION": convolution_precision(dtype), "WIDEN": not t.is_cuda}


def _finish_grid(parts: int, columns: int) -> tuple[int]:
    return (triton.cdiv(parts, GROUP.value) * triton.cdiv(columns, FINISH_COLUMNS),)


def _merge(
    means: Tensor, squares: Tensor, mean: Tensor, variance: Tensor, rows: int, part_rows: int
) -> None:
    """Mean and variance of `rows` rows, of parts (parts, columns) of `part_rows` rows each."""
    while True:
        parts, columns = means.shape
        groups = triton.cdiv(parts, GROUP.value)
        final = groups == 1
        to = (mean, variance)
        if not final:
            to = (means.new_empty(groups, columns), squares.new_empty(groups, columns))
        merge_kernel[_finish_grid(parts, columns)](
            *(means, squares, *to, parts, columns, rows, part_rows),
            FINAL=final,
            BLOCK=FINISH_COLUMNS,
        )
        if final:
            return
        (means, squares), part_rows = to, part_rows * GROUP.value


def _add(
    parts_of: Tensor, out: Tensor, second: Tensor | None, variance: Tensor | None, eps: float
) -> None:
    """`out` as the sum of parts (parts, columns). With `second`, they hold two such side by side,
    and the second one times the inverse deviation goes there."""
    while True:
        parts, columns = parts_of.shape
        groups = triton.cdiv(parts, GROUP.value)
        final = groups == 1
        to = out if final else parts_of.new_empty((groups, columns), dtype=torch.float64)
        pair = (second, variance) if final else (None, None)
        add_kernel[_finish_grid(parts, columns)](
            *(parts_of, to, *pair, parts, columns), EPS=eps, BLOCK=FINISH_COLUMNS
        )
        if final:
            return
        parts_of = to


def norm_relu_conv(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    addend: Tensor | None,
    trunk: Tensor | None,
    stride: int,
    residual: bool,
    eps: float,
    measure: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements ``ran::norm_relu_conv.triton``."""
    x = _last(x)
    n, channels, height, width = x.shape
    size, out = (height, width), conv.shape[0]
    y = new_image(x, (n, out, *out_size(size, stride)), conv.dtype)
    y_mean, y_variance = (accumulator(y, (out if measure else 0,)) for _ in range(2))
    if not y.numel():
        return y, y_mean.zero_(), y_variance.zero_()
    rows = y.numel() // out
    images = 1 + sum(t is not None for t in (addend, trunk))
    kind = "conv" if mean is None else "norm_relu_conv" if trunk is None else "gate"
    wide = x.element_size() > conv.element_size()
    problem = Problem(kind, rows, out, channels, conv.element_size(), images, wide=wide)
    row_tiles, grid, arguments = plan(problem, size, stride, x.device)
    with device_of(x):
        parts = (row_tiles, out) if measure else (0,)
        means, squares = x.new_empty(parts, dtype=torch.float64), accumulator(y, parts)
        norm_relu_conv_kernel[grid](
            x,
            *map(contiguous, (mean, variance, weight, bias)),
            _matrix(conv),
            None,
            *map(_last_or_none, (addend, trunk)),
            None,
            y,
            None,
            *(means, squares) if measure else (None, None),
            EPS=eps,
            MEASURE=measure,
            RESIDUAL=residual,
            **_options(x, conv.dtype),
            **arguments,
        )
        if measure:
            _merge(means, squares, y_mean, y_variance, rows, arguments["BLOCK_ROWS"])
    return y, y_mean, y_variance


def gated_conv(
    x: Tensor, conv: Tensor, bias: Tensor | None, trunk: Tensor, residual: bool
) -> Tensor:
    """`conv_gate` of channels_last images that are not empty: a product without a norm."""
    y = torch.empty_like(trunk)
    channels, out = x.shape[1], conv.shape[0]
    problem = Problem("conv_gate", y.numel() // out, out, channels, x.element_size(), images=2)
    _, grid, arguments = plan(problem, (y.shape[2], y.shape[3]), 1, x.device)
    with device_of(x):
        norm_relu_conv_kernel[grid](
            *(_last(x), None, None, None, None, _matrix(conv), contiguous(bias), None),
            *(_last(trunk), None),
            *(y, None, None, None),
            EPS=0.0,
            MEASURE=False,
            RESIDUAL=residual,
            **_options(x, conv.dtype) | {"PRECISION": precision_of(x)},
            **arguments,
        )
    return y


def norm_relu_conv_gate_grad(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    trunk: Tensor,
    stride: int,
    residual: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Implements ``ran::norm_relu_conv_gate_grad.triton``."""
    x = _last(x)
    grad_logits, grad_trunk = (new_image(grad, trunk.shape, conv.dtype) for _ in range(2))
    if not trunk.numel():
        return grad_logits, grad_trunk
    out, channels = conv.shape
    rows, wide = trunk.numel() // out, x.element_size() > conv.element_size()
    problem = Problem("gate_grad", rows, out, channels, conv.element_size(), 4, wide=wide)
    _, grid, arguments = plan(problem, (x.shape[2], x.shape[3]), stride, x.device)
    with device_of(x):
        norm_relu_conv_kernel[grid](
            x,
            *map(contiguous, (mean, variance, weight, bias)),
            *(_matrix(conv), None, None, _last(trunk), _last(grad)),
            *(grad_logits, grad_trunk, None, None),
            EPS=eps,
            MEASURE=False,
            RESIDUAL=residual,
            **_options(x, conv.dtype),
            **arguments,
        )
    return grad_logits, grad_trunk


def norm_relu_conv_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    stride: int,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements ``ran::norm_relu_conv_reduce.triton``."""
    x = _last(x)
    channels = x.shape[1]
    masked = torch.empty_like(x) if keep else x.new_empty(0)
    sum_grad, sum_grad_xhat = (accumulator(x, (channels,)) for _ in range(2))
    if not x.numel():
        return masked, sum_grad.zero_(), sum_grad_xhat.zero_()
    rows = x.numel() // channels
    images = 1 + keep
    problem = Problem("reduce", rows, channels, conv.shape[0], conv.element_size(), images, 4)
    row_tiles, grid, arguments = plan(problem, (x.shape[2], x.shape[3]), stride, x.device)
    variance = variance.contiguous()
    with device_of(x):
        parts = accumulator(x, (row_tiles, 2 * channels))
        norm_relu_conv_reduce_kernel[grid](
            _last(grad),
            x,
            *map(contiguous, (mean, variance, weight, bias)),
            _matrix(conv),
            masked if keep else None,
            parts,
            EPS=eps,
            VANISHES=VANISHES.get(x.dtype, 0.0),
            **_options(x, conv.dtype),
            **arguments,
        )
        _add(parts, sum_grad, sum_grad_xhat, variance, eps)
    return masked, sum_grad, sum_grad_xhat


def norm_relu_conv_grad(
    grad: Tensor,
    x: Tensor | None,
    addend: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    sum_grad: Tensor | None,
    sum_grad_xhat: Tensor | None,
    count: int,
    conv: Tensor,
    size: list[int],
    stride: int,
    eps: float,
) -> Tensor:
    """Implements ``ran::norm_relu_conv_grad.triton``."""
    out, channels = conv.shape
    dtype = conv.dtype if x is None else x.dtype
    grad_x = new_image(grad, (grad.shape[0], channels, *size), dtype)
    if not grad_x.numel():
        return grad_x
    images = 1 + sum(t is not None for t in (x, addend))
    rows = grad_x.numel() // channels
    kind, numbers = ("conv_grad", 0) if mean is None else ("grad", 6)
    problem = Problem(kind, rows, channels, out, conv.element_size(), images, numbers)
    _, grid, arguments = plan(problem, (size[0], size[1]), stride, grad.device)
    with device_of(grad):
        norm_relu_conv_grad_kernel[grid](
            _last(grad),
            *map(_last_or_none, (x, addend)),
            *map(contiguous, (mean, variance, weight, bias, sum_grad, sum_grad_xhat)),
            _matrix(conv),
            grad_x,
            count,
            EPS=eps,
            VANISHES=VANISHES.get(dtype, 0.0),
            **_options(grad, conv.dtype),
            **arguments,
        )
    return grad_x


def norm_relu_conv_weight(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int,
    eps: float,
) -> Tensor:
    """Implements ``ran::norm_relu_conv_weight.triton``."""
    grad, x = _last(grad), _last(x)
    out, channels = grad.shape[1], x.shape[1]
    grad_conv = grad.new_empty((out, channels))
    rows = grad.numel() // out if out else 0
    if not grad_conv.numel() or not rows:
        return grad_conv.zero_()
    kind = "conv_weight" if mean is None else "weight"
    exact = grad.dtype == torch.float32 and convolution_precision(grad.dtype) == "ieee"
    size, wide = grad.element_size(), x.element_size() > grad.element_size()
    problem = Problem(kind, out, channels, rows, size, splits=True, exact=exact, wide=wide)
    splits, grid, arguments = plan_weight(problem, (x.shape[2], x.shape[3]), stride, x.device)
    with device_of(x):
        parts = grad_conv if splits == 1 else accumulator(grad, (splits, out * channels))
        norm_relu_conv_weight_kernel[grid](
            *(grad, x, *map(contiguous, (mean, variance, weight, bias)), parts),
            EPS=eps,
            **_options(x, grad.dtype),
            **arguments,
        )
        if splits > 1:
            _add(parts, grad_conv, None, None, eps)
    return grad_conv
