"""Measures the tiles of matrix products on the GPU at hand, outside of any training."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .norm_relu_conv_parts import (
    NORM_RELU_CONV,
    NORM_RELU_CONV_GATE_GRAD,
    NORM_RELU_CONV_GRAD,
    NORM_RELU_CONV_REDUCE,
    NORM_RELU_CONV_WEIGHT,
)

if TYPE_CHECKING:
    from .triton.products import Problem

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def tune(
    run: Callable[[], Any],
    device: str | torch.device = "cuda",
    *,
    seconds: Callable[[Callable[[], Any]], float] | None = None,
) -> dict[str, list[int]]:
    """Runs `run` and measures every tile for each product that `norm_relu_conv` makes in it, and
    `conv_gate` of channels_last images.

    The quickest are written to the file that later calls on such a GPU take their tiles from:
    RAN_TILES or ~/.cache/ran_kernels/tiles-NAME.json, each when it is known, and what the file has
    is not measured again. To tune a network, give it a training step. A product takes seconds, as
    every tile of it is compiled; a tile that does not compile or run there is left out. Within a
    call nothing is ever tuned.

    Args:
        run: a call without arguments.
        device: where it computes.
        seconds: how long a call takes; `triton.testing.do_bench`'s median if None.

    Returns:
        The entries that were added: rows, columns, inner, warps and stages of a tile, by product.

    Raises:
        ValueError: there is no file for the device.
    """
    from triton.runtime.errors import OutOfResources, PTXASError

    tuned: Any = importlib.import_module("ran_kernels.triton.tuned")
    products: Any = importlib.import_module("ran_kernels.triton.products")
    device = torch.device(device)
    path = tuned.file_of(device)
    if path is None:
        raise ValueError(f"device: expected a GPU, or a file's name in RAN_TILES, got {device}")
    with tuned.asked() as problems:
        run()
    known, found = tuned.read(path), {}
    for problem in sorted(problems, key=tuned.key_of):
        key = tuned.key_of(problem)
        if key in known or key in found:
            continue
        call = _call(problem, device)
        times, refused = {}, None
        for tile in products.tiles_of(problem):
            with tuned.forced(problem, tile):
                try:
                    times[tile] = (seconds or _seconds)(call)
                except (OutOfResources, PTXASError) as error:
                    refused = error
        if refused and not times:
            raise refused
        found[key] = min(times, key=lambda tile: times[tile])
        tuned.write(path, {key: found[key]})
    return {key: [t.rows, t.columns, t.inner, t.warps, t.stages] for key, t in found.items()}


def _seconds(call: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median"))


def _call(problem: "Problem", device: torch.device) -> Callable[[], Any]:
    """The product, of random numbers: of as many positions, in one image of a pixel's width."""
    dtype = _DTYPES[problem.element_size]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    positions = problem.inner if problem.splits else problem.rows
    size = [positions, 1]

    def image(channels: int, dtype: torch.dtype = dtype) -> Tensor:
        shape = (1, channels, *size)
        filled = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
        return filled.contiguous(memory_format=torch.channels_last)

    def numbers(channels: int) -> list[Tensor]:
        return [torch.rand(channels, dtype=wide, device=device) + 0.5 for _ in range(4)]

    def matrix(out: int, channels: int) -> Tensor:
        return torch.randn(out, channels, device=device).to(dtype)

    kind, columns, inner = problem.kind, problem.columns, problem.inner
    normalised = torch.float32 if problem.wide else dtype
    none = [None] * 4
    if kind in ("norm_relu_conv", "conv", "gate"):
        norm = none if kind == "conv" else numbers(inner)
        beside = image(columns) if problem.images > 1 else None
        images = (None, beside) if kind == "gate" else (beside, None)
        x = image(inner, normalised)
        given = (x, *norm, matrix(columns, inner), *images, 1, True, 1e-5, True)
        return lambda: NORM_RELU_CONV["triton"](*given)
    if kind == "gate_grad":
        x, grad, trunk = image(inner, normalised), image(columns), image(columns)
        given = (grad, x, *numbers(inner), matrix(columns, inner), trunk, 1, True, 1e-5)
        return lambda: NORM_RELU_CONV_GATE_GRAD["triton"](*given)
    if kind == "conv_gate":
        kernels: Any = importlib.import_module("ran_kernels.triton.norm_relu_conv")
        gated = (image(inner), matrix(columns, inner), None, image(columns), True)
        return lambda: kernels.gated_conv(*gated)
    if kind == "reduce":
        channels = numbers(columns)
        given = (image(inner), image(columns), *channels, matrix(inner, columns), 1, 1e-5)
        return lambda: NORM_RELU_CONV_REDUCE["triton"](*given, problem.images > 1)
    if kind in ("grad", "conv_grad"):
        norm = none if kind == "conv_grad" else numbers(columns)
        sums = [None, None] if kind == "conv_grad" else numbers(columns)[:2]
        skipped = kind == "conv_grad"
        operand = None if skipped else image(columns)
        addend = image(columns) if problem.images > (1 if skipped else 2) else None
        shape = (positions, matrix(inner, columns), size, 1, 1e-5)
        grad = image(inner)
        return lambda: NORM_RELU_CONV_GRAD["triton"](grad, operand, addend, *norm, *sums, *shape)
    norm = none if kind == "conv_weight" else numbers(columns)
    given = (image(problem.rows), image(columns, normalised), *norm, 1, 1e-5)
    return lambda: NORM_RELU_CONV_WEIGHT["triton"](*given)
