"""Results too large for a cache, which the CPU's kernels store past it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ran_kernels
from ran_kernels import reference

from .cbam_cases import NATIVE_LAYOUTS
from .harness import relative_error
from .norm_cases import IMAGES, affine, called, images
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
@pytest.mark.parametrize("name", sorted(IMAGES))
def test_large_batches_are_normalised_as_in_pytorch(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    """A batch's parts have statistics of their own, so it is held to the reference."""
    given = images(name, shape, dtype, layout=layout)
    given = [*given, *affine(given[0])]
    with ran_kernels.backend("native"):
        found = forward_and_backward(_last(called(ran_kernels, name, training=True)), given)
    want = forward_and_backward(_last(called(reference, name, training=True)), given)
    for ours, plain in zip(found, want, strict=True):
        assert not ours.isnan().any()
        assert relative_error(ours, plain) < 10 * torch.finfo(dtype).eps


def _last(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """op's last result, with the other added where it has two."""

    def call(*tensors: Tensor) -> Tensor:
        result = op(*tensors)
        return result if isinstance(result, Tensor) else result[0] + result[1]

    return call
