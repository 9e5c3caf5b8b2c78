"""Results too large for a cache, which the CPU's kernels store past it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ran_kernels

from .cbam_cases import NATIVE_LAYOUTS, features
from .harness import relative_error
from .operators import OPERATORS

# As in csrc/cpu/stream.h: a call streams where it moves more bytes, and rows are multiples of 16.
CACHE_BYTES = 32 * 2**20
# Rows that end within a vector in one layout and that are whole vectors in the other; rows of odd
# length, which cannot be streamed.
SHAPES = {
    torch.float32: [(77, 12, 60, 76), (77, 13, 61, 71)],
    torch.bfloat16: [(77, 24, 64, 96)],
}

#: Those whose result is as large as their input, or is made of it position by position.
NAMES = [
    *("attention_gate", "attention_gate[channel]", "attention_gate[spatial]"),
    *("upsample_add", "cbam_gate", "spatial_pool"),
]


def forward_and_backward(op: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result of op, and the gradients of its inputs where the result's is the result itself."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = op(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]
)
@pytest.mark.parametrize("name", NAMES)
def test_large_batches_are_what_small_ones_are(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    case = OPERATORS[name]
    inputs = case.inputs(shape, dtype, layout=layout)
    assert 2 * math.prod(shape) * dtype.itemsize > CACHE_BYTES
    parts = [t.split(7) for t in inputs]
    assert 5 * parts[-1][0].numel() * dtype.itemsize < CACHE_BYTES
    with ran_kernels.backend("native"):
        found = forward_and_backward(case.op, inputs)
        small = [forward_and_backward(case.op, part) for part in zip(*parts, strict=True)]
    for large, those in zip(found, zip(*small, strict=True), strict=True):
        assert not large.isnan().any()
        assert relative_error(large, torch.cat(those)) < torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]
)
def test_passes_of_batch_norm_on_large_batches(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    """Every pass that stores an image, which with given statistics is that of its parts."""
    ran = torch.ops.ran
    given = [features(shape, dtype, layout=layout, seed=seed) for seed in range(3)]
    mean, weight, bias, sums, dots = (
        features((1, shape[1], 1, 1), seed=n).flatten() for n in range(3, 8)
    )
    channels = (mean, mean.square() + 0.5, weight, bias)

    def passes(x: Tensor, y: Tensor, out: Tensor) -> list[Tensor]:
        sized = (*channels, sums, dots, 100, 1e-5, True)
        return [
            ran.batch_norm_statistics(x, y)[0],
            ran.batch_norm_apply(x, None, *channels, 1e-5, True),
            ran.batch_norm_apply(x, y, *channels, 1e-5, True),
            ran.batch_norm_reduce(y, x, out, *channels, 1e-5, True)[0],
            ran.batch_norm_grad(y, x, None, *sized),
            ran.batch_norm_grad(y, x, out, *sized),
        ]

    assert 2 * math.prod(shape) * dtype.itemsize > CACHE_BYTES
    parts = [passes(*part) for part in zip(*(t.split(7) for t in given), strict=True)]
    for large, those in zip(passes(*given), zip(*parts, strict=True), strict=True):
        assert torch.equal(large, torch.cat(those))
