"""Results too large for a cache, which the CPU's kernels store past it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ran_kernels

from .cbam_cases import NATIVE_LAYOUTS, channel_logits, features, spatial_logits
from .harness import LAYOUTS, relative_error

# As in csrc/cpu/stream.h: a call streams where it moves more bytes, and rows are multiples of 16.
CACHE_BYTES = 32 * 2**20
# Rows that end within a vector in one layout and that are whole vectors in the other; rows of odd
# length, which cannot be streamed.
SHAPES = {
    torch.float32: [(77, 12, 60, 76), (77, 13, 61, 71)],
    torch.bfloat16: [(77, 24, 64, 96)],
}

#: An operator, and its inputs from the big tensor.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[Tensor], list[Tensor]]]] = {
    "mixed": (ran_kernels.attention_gate, lambda x: [x.roll(1, 1), x]),
    "channel": (
        lambda a, b: ran_kernels.attention_gate(a, b, activation="channel"),
        lambda x: [x.roll(1, 1), x],
    ),
    "spatial": (
        lambda a, b: ran_kernels.attention_gate(a, b, activation="spatial"),
        lambda x: [x.roll(1, 1), x],
    ),
    "upsample_add": (ran_kernels.upsample_add, lambda x: [x[:, :, ::2, ::2], x]),
    "cbam_gate": (
        lambda x, c, s, r: ran_kernels.cbam_gate(x, c, s, shortcut=r, relu=True),
        lambda x: [x, channel_logits(x), spatial_logits(x), x.roll(1, 1)],
    ),
    "spatial_pool": (ran_kernels.spatial_pool, lambda x: [x, channel_logits(x)]),
}


def forward_and_backward(op: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result of op, and the gradients of its inputs where the result's is the result itself."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = op(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]
)
@pytest.mark.parametrize("name", CALLS)
def test_large_batches_are_what_small_ones_are(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    op, make = CALLS[name]
    x = features(shape, dtype, layout=layout)
    inputs = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in make(x)]
    assert 2 * x.numel() * dtype.itemsize > CACHE_BYTES
    parts = [t.split(7) for t in inputs]
    assert 5 * parts[-1][0].numel() * dtype.itemsize < CACHE_BYTES
    with ran_kernels.backend("native"):
        found = forward_and_backward(op, inputs)
        small = [forward_and_backward(op, part) for part in zip(*parts, strict=True)]
    for large, those in zip(found, zip(*small, strict=True), strict=True):
        assert not large.isnan().any()
        assert relative_error(large, torch.cat(those)) < torch.finfo(dtype).eps
