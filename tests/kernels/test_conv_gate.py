"""conv_gate: Triton's kernel, and what runs in its place, against plain PyTorch."""

import importlib
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import backends, reference

from .cbam_cases import NATIVE_LAYOUTS, features
from .harness import DTYPES, LAYOUTS, Place, check_outputs, relative_error, triton_only

SMALL = (2, 3, 5, 7)
# The output's shape and the channels of x: less than a tile, one of each, tails of several tiles
# along every side, whole tiles.
CASES = [
    ((2, 3, 5, 7), 5),
    ((1, 1, 1, 1), 1),
    ((3, 130, 2, 3), 33),
    ((1, 64, 8, 8), 64),
]
Op = Callable[..., Tensor]


@pytest.fixture
def kernel() -> ModuleType:
    """The module of Triton's kernel."""
    pytest.importorskip("triton")
    return importlib.import_module("ran_kernels.triton.conv_gate")


def inputs(
    shape: tuple[int, ...] = SMALL,
    inner: int = 5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
) -> list[Tensor]:
    """x, weight, bias and trunk; the logits are of about size one."""
    n, channels, height, width = shape
    matrix = features((channels, inner, 1, 1), torch.float64, seed=1) / inner**0.5
    return [
        features((n, inner, height, width), dtype, device, layout),
        matrix.flatten(1).to(dtype).to(device),
        features((1, channels, 1, 1), dtype, device, seed=2).flatten(),
        features(shape, dtype, device, layout, seed=3),
    ]


def naive(op: Op) -> Op:
    """op without a bias and without attention residual learning."""
    return lambda x, weight, trunk: op(x, weight, None, trunk, residual=False)


def check(place: Place, args: list[Tensor]) -> None:
    check_outputs(place, ran_kernels.conv_gate, reference.conv_gate, args)
    without = [args[0], args[1], args[3]]
    check_outputs(place, naive(ran_kernels.conv_gate), naive(reference.conv_gate), without)


@triton_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "inner"), CASES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_exactness(
    place: Place, shape: tuple[int, ...], inner: int, dtype: torch.dtype, layout: str
) -> None:
    check(place, inputs(shape, inner, dtype, place.device, layout))


@triton_only
@pytest.mark.parametrize(
    ("layout", "shape"), [("contiguous", (2, 290, 1, 70)), ("channels_last", (2, 70, 5, 29))]
)
def test_tiles_in_groups(place: Place, layout: str, shape: tuple[int, ...]) -> None:
    """More rows of tiles than are gone through together, and several columns."""
    args = inputs(shape, device=place.device, layout=layout)
    check_outputs(place, ran_kernels.conv_gate, reference.conv_gate, args)


@triton_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_every_tile(
    place: Place,
    dtype: torch.dtype,
    layout: str,
    kernel: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = inputs((1, 130, 10, 13), 70, dtype, place.device, layout)
    products = importlib.import_module("ran_kernels.triton.products")
    tiles = products.TILES if layout == "channels_last" else kernel.TILES
    product = importlib.import_module("ran_kernels.triton.norm_relu_conv")
    for tile in tiles[dtype.itemsize]:
        monkeypatch.setattr(kernel, "choose_tile", lambda *_, tile=tile: tile)
        monkeypatch.setattr(product, "tile_of", lambda *_, tile=tile: tile)
        check_outputs(place, ran_kernels.conv_gate, reference.conv_gate, args)


@triton_only
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_trunk", LAYOUTS)
def test_layouts(place: Place, of_x: str, of_trunk: str) -> None:
    x, weight, bias, trunk = inputs(device=place.device)
    want = reference.conv_gate(x, weight, bias, trunk)
    # Strided weight and bias too, whose every second element would be a NaN.
    weight, bias = (torch.stack([t, t * torch.nan], -1)[..., 0] for t in (weight, bias))
    out = place.run(ran_kernels.conv_gate, LAYOUTS[of_x](x), weight, bias, LAYOUTS[of_trunk](trunk))
    torch.testing.assert_close(out, want)
    last = of_trunk == "channels_last"
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@triton_only
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("residual", [True, False])
def test_special_values_propagate(place: Place, layout: str, residual: bool) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -3.0]
    pairs = torch.tensor(list(itertools.product(values, values)), device=place.device)
    x = LAYOUTS[layout](pairs.t().reshape(1, 2, 7, 7))
    weight = torch.tensor(
        [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [2.0, -1.0]], device=place.device
    )
    shifted = [torch.tensor(values, device=place.device).roll(n).repeat(7) for n in range(5)]
    trunk = LAYOUTS[layout](torch.stack(shifted).reshape(1, 5, 7, 7))
    bias = torch.tensor(values[1:6], device=place.device)
    for given in (None, bias):
        args = (x, weight, given, trunk)
        got = place.run(ran_kernels.conv_gate, *args, residual=residual)
        want = reference.conv_gate(*args, residual=residual)
        torch.testing.assert_close(got, want, equal_nan=True)


@triton_only
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_empty(place: Place, layout: str) -> None:
    args = inputs((0, 3, 4, 4), device=place.device, layout=layout)
    assert place.run(ran_kernels.conv_gate, *args).shape == (0, 3, 4, 4)
    # Nothing to sum: the bias alone.
    args = inputs(inner=0, device=place.device, layout=layout)
    args[1] = torch.zeros_like(args[1])
    want = reference.attention_gate(args[2][:, None, None].expand(args[3].shape), args[3])
    torch.testing.assert_close(place.run(ran_kernels.conv_gate, *args), want)


@triton_only
def test_promotion_is_pytorchs(place: Place) -> None:
    x, weight, bias, trunk = inputs((1, 3, 2, 3), device=place.device)
    for of_x, of_trunk in itertools.product(DTYPES, DTYPES):
        args = (x.to(of_x), weight.to(of_x), bias.to(of_x), trunk.to(of_trunk))
        out = place.run(ran_kernels.conv_gate, *args)
        want = reference.conv_gate(*args)
        assert out.dtype == want.dtype == torch.promote_types(of_x, of_trunk)
        torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2)
    assert place.run(ran_kernels.conv_gate, x, weight.double(), bias, trunk).dtype == torch.float64


@triton_only
def test_autocast_as_the_plain_expression(place: Place) -> None:
    x, weight, bias, trunk = inputs(device=place.device)
    # What bfloat16 rounds away in x alone shows that x was cast, and the result was not.
    x = torch.ones_like(x) + 2**-9
    weight = torch.full_like(weight, 2.0**9)
    bias = torch.full_like(bias, -5 * 2.0**9)
    with torch.autocast(place.device, torch.bfloat16):
        for of_trunk in (trunk, trunk.bfloat16()):
            want = reference.conv_gate(x, weight, bias, of_trunk)
            got = place.run(ran_kernels.conv_gate, x, weight, bias, of_trunk)
            assert got.dtype == want.dtype == of_trunk.dtype
            torch.testing.assert_close(got, want)
    exact = reference.conv_gate(x, weight, bias, trunk)
    assert (
        relative_error(reference.conv_gate(x.bfloat16().float(), weight, bias, trunk), exact) > 0.1
    )


@triton_only
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    x, weight, bias, trunk = inputs(device=place.device, layout=layout)
    for given in (bias, None):
        opcheck(torch.ops.ran.conv_gate.triton, (x, weight, given, trunk, True))


@triton_only
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_compile_and_export(place: Place, layout: str) -> None:
    torch._dynamo.reset()
    args = inputs(device=place.device, layout=layout)
    want = reference.conv_gate(*args).relu()
    compiled = torch.compile(
        lambda *args: ran_kernels.conv_gate(*args).relu(), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(place.run(compiled, *args), want)

    class Head(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return ran_kernels.conv_gate(*args).relu()

    program = place.run(torch.export.export, Head(), tuple(args))
    assert any("ran.conv_gate.triton" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*args), want)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_without_triton_the_native_gate_follows_pytorchs_convolution(layout: str) -> None:
    args = inputs(layout=layout)
    with (
        ran_kernels.backend("native"),
        pytest.raises(
            ran_kernels.BackendError, match="'native' cannot run conv_gate: conv_gate has no native"
        ),
    ):
        ran_kernels.conv_gate(*args)
    with ran_kernels.backend("auto"), torch.profiler.profile() as profile:
        assert backends.choose("conv_gate", args[3]) == "reference"
        torch.testing.assert_close(ran_kernels.conv_gate(*args), reference.conv_gate(*args))
    names = {event.key for event in profile.key_averages()}
    assert {"ran::attention_gate", "aten::conv2d"} <= names
    args[1].requires_grad_()
    with ran_kernels.backend("auto"):
        (grad,) = torch.autograd.grad(ran_kernels.conv_gate(*args).sum(), args[1])
    (want,) = torch.autograd.grad(reference.conv_gate(*args).sum(), args[1])
    torch.testing.assert_close(grad, want)


def test_tf32_is_asked_for_as_for_matrix_products(kernel: ModuleType) -> None:
    values = {dtype: torch.zeros(1, dtype=dtype) for dtype in DTYPES}
    try:
        for precision, expected in (("highest", "ieee"), ("high", "tf32")):
            torch.set_float32_matmul_precision(precision)
            assert kernel.precision_of(values.pop(torch.float32)) == expected
            values[torch.float32] = torch.zeros(1)
            others = [kernel.precision_of(t) for d, t in values.items() if d != torch.float32]
            assert others == ["ieee"] * 3
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_tf32_is_less_exact() -> None:
    args = inputs((2, 128, 17, 19), 256, device="cuda")
    exact = reference.conv_gate(*(t.double() for t in args))
    errors = []
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            with ran_kernels.backend("triton"):
                errors.append(relative_error(ran_kernels.conv_gate(*args), exact))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert errors[0] < 1e-6 < errors[1] < 1e-3


def test_tiles_follow_the_shape(kernel: ModuleType) -> None:
    def sides(*shape: int, inner: int = 256, size: int = 2) -> tuple[int, int]:
        tile = kernel.choose_tile(*shape, inner, size)
        return tile.rows, tile.columns

    assert sides(1, 32 * 56 * 56, 256) == (128, 128)  # the large one where there are enough of it
    assert sides(1, 14 * 14, 1024) == (64, 64)  # small ones for one image
    assert sides(1, 10**6, 64) == (64, 64)  # none that is half empty
    assert sides(32, 64, 56 * 56) == (64, 128)
    assert sides(1, 10**6, 256, size=8) == (32, 32)
    # Rows that are no packs: each element is a load of its own.
    assert sides(128, 512, 7 * 7) == (64, 64)
    assert sides(32, 256, 56 * 56, inner=255) == (64, 64)


A = torch.zeros(2, 3, 4, 4)
W = torch.zeros(3, 3)
C = torch.zeros(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x: expected a tensor, got list"),
        ({"x": A[:1]}, ValueError,
         r"x: expected shape \(2, 3, 4, 4\) but for K as trunk, got \(1, 3, 4, 4\)"),
        ({"x": A.int()}, TypeError, r"x: expected float64, .* got int32"),
        ({"x": A.to("meta")}, ValueError, r"x: expected device cpu as trunk, got meta"),
        ({"weight": A}, ValueError, r"weight: expected 2 dimensions, got shape \(2, 3, 4, 4\)"),
        ({"weight": W[:2]}, ValueError,
         r"weight: expected shape \(3, 3\) \(C of trunk, K of x\), got \(2, 3\)"),
        ({"bias": C[:2]}, ValueError, r"bias: expected shape \(3,\) \(C,\) of trunk, got \(2,\)"),
        ({"trunk": A[0]}, ValueError, r"trunk: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        ({"x": A[:, :, :0], "trunk": A[:, :, :0]}, ValueError,
         r"trunk: expected channels and positions, got shape \(2, 3, 0, 4\)"),
    ],
    ids=["no-tensor", "other-shape", "integers", "device", "matrix", "weight", "bias",
         "dimensions", "no-positions"],
)  # fmt: skip
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.conv_gate(**{"x": A, "weight": W, "bias": C, "trunk": A, **options})
