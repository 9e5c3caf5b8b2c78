"""spatial_pool on every backend against plain PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference

from .cbam_cases import NATIVE_LAYOUTS, SHAPES, channel_logits, features, fits
from .harness import (
    DTYPES,
    LAYOUTS,
    Place,
    check_against_reference,
    everywhere,
    kernels,
    outputs_and_grads,
    registrations,
)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_exactness(
    place: Place, shape: tuple[int, ...], dtype: torch.dtype, layout: str, gated: bool
) -> None:
    if fits(place, shape):
        x = features(shape, dtype, place.device, layout)
        args = (x, channel_logits(x) if gated else None)
        check_against_reference(place, ran_kernels.spatial_pool, reference.spatial_pool, args)


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place: Place, layout: str) -> None:
    x = features((2, 3, 5, 7), device=place.device)
    # Every second value of a wider tensor: small arguments need not be contiguous either.
    logits = torch.stack([channel_logits(x), torch.full((2, 3), torch.nan).to(x)], 2)[:, :, 0]
    want, want_grads = outputs_and_grads(reference.spatial_pool, (x, logits))
    args = (LAYOUTS[layout](x), logits)
    got, grads = place.run(outputs_and_grads, ran_kernels.spatial_pool, args)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, want_grads)
    assert got[0].is_contiguous()


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_gradcheck(place: Place, layout: str, gated: bool) -> None:
    x = features((2, 3, 2, 3), torch.float64, place.device, layout).requires_grad_()
    args = (x, channel_logits(x).detach().requires_grad_() if gated else None)
    assert place.gradcheck(ran_kernels.spatial_pool, args)


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_a_tie_goes_to_the_first_channel(place: Place, layout: str) -> None:
    for values in (torch.zeros(2, 19, 4, 5), torch.tensor([1.0, 3.0] * 380).reshape(2, 19, 4, 5)):
        x = LAYOUTS[layout](values.to(place.device)).requires_grad_()
        maximum = place.run(ran_kernels.spatial_pool, x)[:, 0]
        (grad,) = torch.autograd.grad(maximum.sum(), x)
        assert torch.equal(grad.argmax(1), values.max(dim=1).indices.to(place.device))
        assert (grad.count_nonzero(1) == 1).all()


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_nan_wins_and_infinities_propagate(place: Place, layout: str, gated: bool) -> None:
    x = features((1, 21, 3, 5))
    nan, inf = float("nan"), float("inf")
    for column, values in enumerate([(nan, inf), (inf, nan), (inf, -inf), (nan, nan), (inf, inf)]):
        x[0, 3, 1, column], x[0, 12, 1, column] = values
    x[0, :, 0, 0] = -inf
    x[0, :, 0, 1] = nan
    x = LAYOUTS[layout](x.to(place.device))
    logits = None
    if gated:
        logits = channel_logits(x)
        logits[0, 3] = -inf  # a gate of 0 makes NaN of infinity
    want, want_grads = outputs_and_grads(reference.spatial_pool, (x, logits))
    got, grads = place.run(outputs_and_grads, ran_kernels.spatial_pool, (x, logits))
    torch.testing.assert_close(got, want, equal_nan=True)
    torch.testing.assert_close(grads, want_grads, equal_nan=True)


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_the_gradient_of_a_gate_on_infinity_is_infinite(place: Place, layout: str) -> None:
    # Its maximum's and its mean's parts have one sign or the other, and are added up first.
    for sign in (1, -1):
        x = features((2, 21, 3, 5))
        x[0, 3, 1, 2] = sign * torch.inf
        x = LAYOUTS[layout](x.to(place.device))
        args = (x, channel_logits(x))
        want = outputs_and_grads(reference.spatial_pool, args)
        got = place.run(outputs_and_grads, ran_kernels.spatial_pool, args)
        torch.testing.assert_close(got, want, equal_nan=True)


@kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    x = features(shape, device=place.device)
    got, grads = place.run(outputs_and_grads, ran_kernels.spatial_pool, (x, channel_logits(x)))
    assert got[0].shape == (shape[0], 2, *shape[2:])
    assert grads[0].shape == shape
    assert not grads[1].count_nonzero()


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    x = features((2, 3, 5, 7), device=place.device, layout=layout).requires_grad_()
    op = getattr(torch.ops.ran.spatial_pool, overload)
    opcheck(op, (x, None))
    opcheck(op, (x, channel_logits(x).detach().requires_grad_()))


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("x", "logits", "error", "message"),
    [
        ([1.0], None, TypeError, r"x: expected a tensor, got list"),
        (X[0], None, ValueError, r"x: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        (X[:, :0], None, ValueError, r"x: expected at least one channel, got shape"),
        (X, X, ValueError, r"channel_logits: expected 2 dimensions, got shape"),
        (X, torch.zeros(2, 4), ValueError,
         r"channel_logits: expected shape \(2, 3\) \(N, C\) of x, got \(2, 4\)"),
        (X, torch.zeros(2, 3, device="meta"), ValueError,
         r"channel_logits: expected device cpu as x, got meta"),
    ],
    ids=["no-tensor", "dimensions", "no-channel", "logits-dimensions", "logits-shape", "device"],
)  # fmt: skip
def test_bad_arguments_are_named(
    x: Any, logits: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.spatial_pool(x, logits)
