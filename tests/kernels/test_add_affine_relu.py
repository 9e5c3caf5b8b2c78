"""add_affine_relu and affine_relu on every backend against plain PyTorch."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference

from .cbam_cases import NATIVE_LAYOUTS, SHAPES, features, fits
from .harness import DTYPES, LAYOUTS, Place, check_outputs, kernels, registrations

SMALL = (2, 3, 5, 7)


def inputs(
    shape: tuple[int, ...] = SMALL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
) -> list[Tensor]:
    """a, b, scale and shift; about half of the results are below zero."""
    channels = (1, shape[1], 1, 1)
    return [
        features(shape, dtype, device, layout),
        features(shape, dtype, device, layout, seed=1),
        features(channels, dtype, device, seed=2).flatten(),
        features(channels, dtype, device, seed=3).flatten(),
    ]


def without_b(args: list[Tensor]) -> list[Tensor]:
    return [args[0], *args[2:]]


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_exactness(place: Place, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    if fits(place, shape):
        args = inputs(shape, dtype, place.device, layout)
        check_outputs(place, ran_kernels.add_affine_relu, reference.add_affine_relu, args)
        check_outputs(place, ran_kernels.affine_relu, reference.affine_relu, without_b(args))


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_layouts(place: Place, layout: str, of_b: str) -> None:
    a, b, scale, shift = inputs(device=place.device)
    want = reference.add_affine_relu(a, b, scale, shift)
    # Strided scale and shift too, whose every second element would be a NaN.
    scale, shift = (torch.stack([t, t * torch.nan], 1)[:, 0] for t in (scale, shift))
    a, b = LAYOUTS[layout](a), LAYOUTS[of_b](b)
    got = place.run(ran_kernels.add_affine_relu, a, b, scale, shift)
    torch.testing.assert_close(got, want)
    alone = place.run(ran_kernels.affine_relu, a, scale, shift)
    torch.testing.assert_close(alone, reference.affine_relu(a, scale, shift))
    channels_last = layout == "channels_last"
    format = torch.channels_last if channels_last else torch.contiguous_format
    assert all(t.is_contiguous(memory_format=format) for t in (*got, alone))


@kernels
def test_the_unrounded_sum_goes_on(place: Place) -> None:
    """1 + 2^-9 rounds to 1 in bfloat16; the scaled difference tells whether it was rounded."""
    one = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16, device=place.device)
    affine = [torch.tensor([value], device=place.device) for value in (512.0, -512.0)]
    total, out = place.run(ran_kernels.add_affine_relu, one, one * 2**-9, *affine)
    assert torch.equal(total, one)
    assert torch.equal(out, one)


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_special_values_propagate(place: Place, layout: str) -> None:
    # No products of finite numbers that overflow: added to an infinity within one instruction, they
    # have not overflowed yet.
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -100.0, 100.0, 1e18]
    pairs = torch.tensor(list(itertools.product(values, values))).to(place.device)
    a, b = (LAYOUTS[layout](t.reshape(1, 1, 9, 9).expand(1, 81, 9, 9)) for t in pairs.unbind(1))
    args = (a, b, *pairs.t().contiguous())
    want = reference.add_affine_relu(*args)
    got = place.run(ran_kernels.add_affine_relu, *args)
    torch.testing.assert_close(got, want, equal_nan=True)


@kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    args = inputs(shape, device=place.device)
    total, out = place.run(ran_kernels.add_affine_relu, *args)
    assert total.shape == out.shape == shape
    assert place.run(ran_kernels.affine_relu, *without_b(args)).shape == shape


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    a, b, scale, shift = inputs(device=place.device, layout=layout)
    op = getattr(torch.ops.ran.add_affine_relu, overload)
    for added in (b, None):
        opcheck(op, (a, added, scale, shift))


A = torch.zeros(2, 3, 4, 4)
C = torch.zeros(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"a": [1.0]}, TypeError, r"a: expected a tensor, got list"),
        ({"a": A[0]}, ValueError, r"a: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        ({"b": A[:1]}, ValueError,
         r"b: expected shape \(2, 3, 4, 4\) as a, got \(1, 3, 4, 4\)"),
        ({"b": A.int()}, TypeError, r"b: expected float64, .* got int32"),
        ({"b": A.to("meta")}, ValueError, r"b: expected device cpu as a, got meta"),
        ({"scale": A}, ValueError, r"scale: expected 1 dimensions, got shape \(2, 3, 4, 4\)"),
        ({"shift": C[:2]}, ValueError, r"shift: expected shape \(3,\) \(C,\) of a, got \(2,\)"),
    ],
    ids=["no-tensor", "dimensions", "other-shape", "integers", "device", "scale", "shift"],
)  # fmt: skip
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.add_affine_relu(**{"a": A, "b": A, "scale": C, "shift": C, **options})
    if "b" not in options:
        alone = {"x": options.get("a", A), "scale": C, "shift": C, **options}
        alone.pop("a", None)
        with pytest.raises(error, match=message.replace("a: ", "x: ").replace("of a", "of x")):
            ran_kernels.affine_relu(**alone)
