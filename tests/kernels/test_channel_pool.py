"""channel_pool on every backend against plain PyTorch."""

import itertools
from typing import Any

import pytest
import torch
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference

from .cbam_cases import NATIVE_LAYOUTS, SHAPES, features, fits
from .harness import (
    DTYPES,
    LAYOUTS,
    Place,
    check_against_reference,
    everywhere,
    kernels,
    outputs_and_grads,
    registrations,
    relative_error,
)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_exactness(place: Place, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    if fits(place, shape):
        x = features(shape, dtype, place.device, layout)
        check_against_reference(place, ran_kernels.channel_pool, reference.channel_pool, (x,))


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place: Place, layout: str) -> None:
    x = features((2, 3, 5, 7), device=place.device)
    want, want_grads = outputs_and_grads(reference.channel_pool, (x,))
    x = LAYOUTS[layout](x)
    got, grads = place.run(outputs_and_grads, ran_kernels.channel_pool, (x,))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, want_grads)
    assert all(t.is_contiguous() for t in got)


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_gradcheck(place: Place, layout: str) -> None:
    x = features((2, 3, 2, 3), torch.float64, place.device, layout).requires_grad_()
    assert place.gradcheck(ran_kernels.channel_pool, (x,))


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_a_tie_goes_to_the_first_position(place: Place, layout: str) -> None:
    for values in (torch.zeros(2, 9, 4, 5), torch.tensor([1.0, 3.0] * 180).reshape(2, 9, 4, 5)):
        x = LAYOUTS[layout](values.to(place.device)).requires_grad_()
        maximum = place.run(ran_kernels.channel_pool, x)[1]
        (grad,) = torch.autograd.grad(maximum.sum(), x)
        first = values.flatten(2).max(dim=2).indices.to(place.device)
        assert torch.equal(grad.flatten(2).argmax(2), first)
        assert (grad.flatten(2).count_nonzero(2) == 1).all()


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_nan_wins_and_infinities_propagate(place: Place, layout: str) -> None:
    x = features((1, 16, 6, 7))
    nan, inf = float("nan"), float("inf")
    for channel, values in enumerate(
        [(nan, inf), (inf, nan), (inf, -inf), (-inf, nan), (nan, nan), (inf, inf), (-inf, -inf)]
    ):
        x[0, channel, 2, 3], x[0, channel, 4, 1] = values
    x[0, 7] = -inf
    x[0, 8] = nan
    x = LAYOUTS[layout](x.to(place.device))
    want, want_grads = outputs_and_grads(reference.channel_pool, (x,))
    got, grads = place.run(outputs_and_grads, ran_kernels.channel_pool, (x,))
    torch.testing.assert_close(got, want, equal_nan=True)
    torch.testing.assert_close(grads, want_grads, equal_nan=True)


@kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    x = features(shape, device=place.device)
    got, grads = place.run(outputs_and_grads, ran_kernels.channel_pool, (x,))
    assert [t.shape for t in got] == [shape[:2]] * 2
    assert grads[0].shape == shape


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    x = features((2, 3, 5, 7), device=place.device, layout=layout).requires_grad_()
    opcheck(getattr(torch.ops.ran.channel_pool, overload), (x,))


def test_more_positions_than_one_block_of_the_cpu_kernel() -> None:
    for layout, height in itertools.product(NATIVE_LAYOUTS, (1, 16, 17, 40)):
        x = features((1, 2, height, 16), layout=layout)
        x[0, 0, -1, -1] = x[0, 1, height // 2, 0] = 9
        with ran_kernels.backend("native"):
            mean, maximum, index = torch.ops.ran.channel_pool(x)
        flat = x.flatten(2)
        assert torch.equal(maximum, flat.max(2).values)
        assert torch.equal(index, flat.max(2).indices.int())
        torch.testing.assert_close(mean, flat.mean(2))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, r"x: expected a tensor, got list"),
        (torch.zeros(2, 3, 4), ValueError, r"x: expected \(N, C, H, W\), got shape \(2, 3, 4\)"),
        (torch.zeros(2, 3, 0, 4), ValueError, r"x: expected at least one position, got shape"),
    ],
    ids=["no-tensor", "dimensions", "no-position"],
)
def test_bad_arguments_are_named(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.channel_pool(x)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_sums_over_large_maps_keep_their_digits(layout: str) -> None:
    torch.use_deterministic_algorithms(False)  # without poison: this is about rounding
    # Values of one sign: their running sum in float32 would lose a thousand times eps.
    x = features((1, 8, 1024, 1024), layout=layout).abs()
    logits = torch.zeros(1, 8, requires_grad=True)
    with ran_kernels.backend("native"):
        mean, _ = ran_kernels.channel_pool(x)
        out = ran_kernels.cbam_gate(x, logits)
        (grad,) = torch.autograd.grad(out, logits, torch.ones_like(out))
    exact = x.double().mean((2, 3))
    assert relative_error(mean, exact) < 1e-6
    assert relative_error(grad, exact * x[0, 0].numel() / 4) < 1e-6


def test_more_positions_than_indices_count_are_refused() -> None:
    endless = torch.zeros(1).expand(1, 1, 1, 2**31 - 1)
    with (
        ran_kernels.backend("native"),
        pytest.raises(RuntimeError, match="channel_pool: x: expected at most 2147482623 positions"),
    ):
        ran_kernels.channel_pool(endless)
