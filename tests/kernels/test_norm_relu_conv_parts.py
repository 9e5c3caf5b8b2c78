"""The passes of 1×1 convolutions with the norm inside, against the reference."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ran_kernels import reference
from ran_kernels.norm_relu_conv_parts import out_size

from .cbam_cases import features
from .harness import DTYPES, LAYOUTS, Place, relative_error, triton_only
from .norm_cases import affine

PARTS = (
    *("norm_relu_conv", "norm_relu_conv_reduce", "norm_relu_conv_grad", "norm_relu_conv_weight"),
    "norm_relu_conv_gate_grad",
)
#: Those that there are of a norm alone.
OF_NORMS = ("norm_relu_conv_reduce", "norm_relu_conv_gate_grad")
EPS = 1e-5


#: What parts are given: everything, little, and a gate in place of the addend.
GATED: tuple[dict[str, bool], ...] = (
    *({}, {"few": True}),
    *({"gated": True, "residual": residual} for residual in (True, False)),
)


class Shape:
    """A convolution: x, out channels, stride, and whether a norm is before it."""

    def __init__(self, x: tuple[int, ...], out: int, stride: int = 1, norm: bool = True) -> None:
        self.x, self.out, self.stride, self.norm = x, out, stride, norm

    @property
    def y(self) -> tuple[int, ...]:
        return (self.x[0], self.out, *out_size(self.x[2:], self.stride))

    def __str__(self) -> str:
        return f"{self.x}-{self.out}/{self.stride}{'' if self.norm else '-plain'}"


# Less than a tile, no multiples of 16; one of each; several tiles along every side; levels of sums.
SMALL = Shape((2, 6, 5, 7), 5)
SHAPES = [
    SMALL,
    Shape((2, 6, 5, 7), 13, stride=2),
    Shape((1, 1, 1, 2), 1),
    Shape((1, 70, 7, 6), 40, stride=2, norm=False),
    Shape((1, 33, 9, 9), 67),
]


def last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def arguments(
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    *,
    few: bool = False,
    gated: bool = False,
    residual: bool = True,
) -> tuple[Any, ...]:
    """Of the part `name`; `few` leaves out what may be None, `gated` has a trunk and no addend."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = last(2 * features(shape.x, dtype, device) + 1)
    norm: list[Any] = [None] * 4
    if shape.norm:
        norm = list(reference.batch_norm_statistics(x, None)[1:])
        norm += [None, None] if few else [t.to(wide) for t in affine(x)]
    conv = features((shape.out, shape.x[1], 1, 1), torch.float64, seed=4) / shape.x[1] ** 0.5
    conv = conv.flatten(1).to(dtype).to(device)
    addend = None if few else last(features(shape.y, dtype, device, seed=5))
    grad = last(features(shape.y, dtype, device, seed=6))
    if name == "norm_relu_conv":
        beside = (None, addend) if gated else (addend, None)
        return (x, *norm, conv, *beside, shape.stride, residual, EPS, not few)
    if name == "norm_relu_conv_gate_grad":
        trunk = last(features(shape.y, dtype, device, seed=8))
        return (grad, x, *norm, conv, trunk, shape.stride, residual, EPS)
    if name == "norm_relu_conv_reduce":
        return (grad, x, *norm, conv, shape.stride, EPS, not few)
    if name == "norm_relu_conv_weight":
        return (grad, x, *norm, shape.stride, EPS)
    sums: list[Any] = [None, None]
    if shape.norm and not few:
        mean, variance, weight, bias = norm
        of_norm = (mean, variance, weight, bias, conv, shape.stride, EPS)
        sums = [*reference.norm_relu_conv_reduce(grad, x, *of_norm, False)[1:]]
    skip = None if few else last(features(shape.x, dtype, device, seed=7))
    count = x.numel() // x.shape[1]
    given = x if shape.norm else None
    return (grad, given, skip, *norm, *sums, count, conv, [*shape.x[2:]], shape.stride, EPS)


def overload(name: str) -> Any:
    return getattr(torch.ops.ran, name).triton


def listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def has_part(shape: Shape, name: str) -> bool:
    return shape.norm or name not in OF_NORMS


def doubled(values: tuple[Any, ...]) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) else v for v in values]


@triton_only
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts(place: Place, name: str, shape: Shape) -> None:
    if not has_part(shape, name):
        pytest.skip("no norm to reduce for")
    for dtype in DTYPES if shape is SMALL else (torch.float64,):
        for options in GATED:
            if options.get("gated") and name not in ("norm_relu_conv", "norm_relu_conv_gate_grad"):
                continue  # the same once more
            given = arguments(name, shape, dtype, place.device, **options)
            got = listed(overload(name)(*given))
            eager = listed(getattr(reference, name)(*given))
            exact = listed(getattr(reference, name)(*doubled(given)))
            for a, b, c in zip(got, eager, exact, strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert a.dim() != 4 or a.is_contiguous(memory_format=torch.channels_last)
                limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype)
                if limit is None:  # numbers of channels are float32, of what was rounded
                    limit = max(3 * relative_error(b, c), torch.finfo(dtype).eps / 2)
                assert relative_error(a, c) <= limit


@triton_only
def test_sums_of_many_parts(place: Place) -> None:
    """More tiles of positions, and more shares of them, than one level of sums puts together."""
    shape = Shape((1, 2, 47, 47), 2)
    tiles = importlib.import_module("ran_kernels.triton.products").TILES[8]
    group = importlib.import_module("ran_kernels.triton.norm_relu_conv_kernels").GROUP.value
    assert group * tiles[0].rows < 47 * 47
    for name in (*PARTS[:2], PARTS[3]):
        given = arguments(name, shape, torch.float64, place.device)
        got, want = (listed(op(*given)) for op in (overload(name), getattr(reference, name)))
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@triton_only
@pytest.mark.parametrize("name", PARTS)
def test_opcheck(place: Place, name: str) -> None:
    for layout in ("channels_last", "contiguous", "transposed"):
        for few in (False, True):
            given = arguments(name, SMALL, torch.float32, place.device, few=few)
            laid = [
                LAYOUTS[layout](v) if isinstance(v, Tensor) and v.dim() == 4 else v for v in given
            ]
            opcheck(overload(name), tuple(laid), test_utils=("test_schema", "test_faketensor"))


@triton_only
def test_what_begins_anywhere_is_copied_to_where_packs_begin(place: Place) -> None:
    """Tiles have registers for loads of packs."""
    kernels = importlib.import_module("ran_kernels.triton.norm_relu_conv")
    flat = torch.zeros(2 * 8 * 3 * 3 + 1, dtype=torch.float16, device=place.device)
    odd = flat[1:].view(2, 3, 3, 8).permute(0, 3, 1, 2)
    assert odd.data_ptr() % 16
    for t, of in ((odd, kernels._last), (odd[0, :, 0], kernels._matrix)):
        got = of(t)
        assert got.data_ptr() % 16 == 0
        assert torch.equal(got, t)
        assert of(got) is got


@triton_only
@pytest.mark.parametrize("mean", [0.0, 3e4])
def test_statistics_are_those_of_deviations(place: Place, mean: float) -> None:
    """A mean far from 0 costs no digits."""
    x = last(features((2, 3, 9, 8), torch.float32, place.device))
    conv = torch.eye(3, device=place.device)
    addend = torch.full_like(x, mean)
    y, *found = overload("norm_relu_conv")(x, *[None] * 4, conv, addend, None, 1, True, EPS, True)
    variance, center = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found, [center.float(), variance.float()], rtol=1e-6, atol=1e-6)


@triton_only
def test_the_mask_is_of_what_the_activation_rounds_to(place: Place) -> None:
    """A positive result of the norm that is 0 in float16 lets no gradient through."""
    x = last(features((1, 4, 2, 3), torch.float16, place.device).abs() + 1)
    numbers = torch.zeros(4, device=place.device)
    weight = torch.tensor([1e-9, 1.0, 1e-9, 1.0], device=place.device)
    norm = (numbers, numbers + 1, weight, None)
    conv = torch.eye(4, dtype=torch.float16, device=place.device)
    masked, total, _ = overload("norm_relu_conv_reduce")(x, x, *norm, conv, 1, EPS, True)
    through = torch.tensor([False, True, False, True], device=place.device)
    assert torch.equal(masked.amax((0, 2, 3)) > 0, through)
    assert torch.equal(total > 0, through)
    none = [None] * 2
    large = 2.0**13 * x  # for the gradient not to round to 0
    grad = overload("norm_relu_conv_grad")(large, x, None, *norm, *none, 6, conv, [2, 3], 1, EPS)
    assert torch.equal(grad.abs().amin((0, 2, 3)) > 0, through)


@triton_only
def test_positions_of_samples_larger_than_32_bits(place: Place) -> None:
    """More than 2³² of them in one sample, every fourth of which stride 2 reads."""
    kernel: Any = importlib.import_module("tests.kernels.position_kernels").positions_kernel
    side = 2**16 + 1
    half = (side + 1) // 2
    rows = [0, 1, side, 3 * side + 5, 2**30 - 1, 2**31 + 2, 2**32 + side + 2]
    row = torch.tensor([*rows, 0], device=place.device)
    found = torch.zeros(3, 8, dtype=torch.int64, device=place.device)
    place.run(kernel[(1,)], row, found, side, half)
    for i, at in enumerate(rows):
        sample, y, x = at // half**2, at // half % half, at % half
        assert found[0, i] == (sample * side + 2 * y) * side + 2 * x
        sample, y, x = at // side**2, at // side % side, at % side
        assert found[2, i] == (x % 2 == y % 2 == 0)
        assert found[1, i] == (sample * half + y // 2) * half + x // 2


@triton_only
def test_nothing_comes_from_past_the_end(place: Place) -> None:
    """Where a tile has more positions than there are, or a position that stride 2 leaves out."""
    shape = Shape((1, 3, 3, 3), 2, stride=2)
    grad, x, mean, variance, weight, _, stride, eps = arguments(
        "norm_relu_conv_weight", shape, torch.float64, place.device
    )
    bias = torch.full_like(mean, torch.inf)
    found = overload("norm_relu_conv_weight")(
        grad.abs(), x, mean, variance, weight, bias, stride, eps
    )
    assert torch.equal(found, torch.full_like(found, torch.inf))
    conv = torch.full((2, 3), torch.inf, dtype=torch.float64, device=place.device)
    none = [None] * 8
    found = overload("norm_relu_conv_grad")(grad.abs(), *none, 1, conv, [3, 3], 2, eps)
    want = torch.zeros_like(x)
    want[:, :, ::2, ::2] = torch.inf
    assert torch.equal(found, want)
