"""Results have the documented strides, the same on every backend and in the fake."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ran_kernels
from ran_kernels.layouts import memory_format_of

from .harness import LAYOUTS, Place, everywhere

SHAPE = (2, 3, 5, 4)
# The harness's, and what promotion's copies may lose: expanded dimensions, slices of channels.
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    **LAYOUTS,
    "sliced_channels": lambda t: LAYOUTS["channels_last"](torch.cat([t, t], 1))[:, : t.shape[1]],
    "one_sample": lambda t: t[:1].expand(t.shape),
    "one_channels_last_sample": lambda t: LAYOUTS["channels_last"](t[:1]).expand(t.shape),
    "one_position": lambda t: t[:, :, :1, :1].expand(t.shape),
}
SIZE = (8, 6)
#: Of the tensor whose layout the result takes, and of another one.
OPERATORS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "attention_gate": lambda x, y: ran_kernels.attention_gate(y, x),
    "channel": lambda x, y: ran_kernels.attention_gate(y, x, activation="channel"),
    "spatial": lambda x, y: ran_kernels.attention_gate(y, x, activation="spatial"),
    "conv_gate": lambda x, y: ran_kernels.conv_gate(y, torch.ones_like(y[0, :, :3, 0]), None, x),
    "upsample": lambda x, y: ran_kernels.upsample(x, SIZE),
    "upsample_add": lambda x, y: ran_kernels.upsample_add(y[:, :, :2, :2], x),
    "channel_pool": lambda x, y: ran_kernels.channel_pool(x),
    "spatial_pool": lambda x, y: ran_kernels.spatial_pool(x, y[:, :, 0, 0]),
    "cbam_gate": lambda x, y: ran_kernels.cbam_gate(x, y[:, :, 0, 0], y[:, :1], shortcut=y),
    "add_affine_relu": lambda x, y: ran_kernels.add_affine_relu(x, y, y[0, :, 0, 0], y[0, :, 1, 0]),
    "affine_relu": lambda x, y: ran_kernels.affine_relu(x, y[0, :, 0, 0], y[0, :, 1, 0]),
}
NORMS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "batch_norm": lambda x, y: ran_kernels.batch_norm(x, None, None, training=True),
    "batch_norm_relu": lambda x, y: ran_kernels.batch_norm_relu(x, *(y[0, :, :2, 0].abs().t())),
    "add_batch_norm_relu": lambda x, y: ran_kernels.add_batch_norm_relu(
        x, y, None, None, training=True
    ),
    "batch_norm_add_relu": lambda x, y: ran_kernels.batch_norm_add_relu(
        x, y, None, None, training=True
    ),
}
OPERATORS |= NORMS
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
]


def documented(name: str, result: Tensor, x: Tensor) -> Tensor:
    """A tensor with the strides that the operator's docstring promises."""
    if result.dim() != 4 or name == "spatial_pool":
        return torch.empty(result.shape)
    if name == "attention_gate":
        dense = torch.empty_like(x)
        if memory_format_of(x) == memory_format_of(dense):
            return dense
    return torch.empty(result.shape, memory_format=memory_format_of(x))


def strides(t: Tensor) -> tuple[int, ...]:
    return tuple(s for s, size in zip(t.stride(), t.shape, strict=True) if size > 1)


@everywhere
@pytest.mark.parametrize("name", OPERATORS)
def test_strides(place: Place, name: str) -> None:
    if name == "conv_gate" and place.backend == "native":
        pytest.skip("conv_gate has no native kernel")
    generator = torch.Generator().manual_seed(0)
    # Every way of x, but of the other one those that differ most.
    others = ("contiguous", "channels_last", "one_channels_last_sample")
    cases = list(itertools.product(WAYS, others, DTYPES))
    # What is slow takes every second: as their numbers are odd, every two of the three still meet.
    assert len(others) % 2 == len(DTYPES) % 2 == 1
    for way, other, dtypes in place.share(cases):
        x, y = (
            WAYS[w](torch.randn(SHAPE, generator=generator).to(dtype).to(place.device))
            for w, dtype in zip((way, other), dtypes, strict=True)
        )
        results = place.run(OPERATORS[name], x, y)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            fakes = place.run(OPERATORS[name], mode.from_tensor(x), mode.from_tensor(y))
        listed = [results] if isinstance(results, Tensor) else results
        for result, fake in zip(
            listed, [fakes] if isinstance(fakes, Tensor) else fakes, strict=True
        ):
            case = f"{way} {other} {dtypes}"
            assert strides(result) == strides(documented(name, result, x)), case
            assert strides(fake) == strides(result), case
