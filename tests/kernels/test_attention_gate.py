"""attention_gate on every backend against plain PyTorch."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference

from ..watching import saved_by
from .harness import (
    DTYPES,
    LAYOUTS,
    OF_DERIVATIVES,
    Place,
    check_against_reference,
    everywhere,
    kernels,
    outputs_and_grads,
    registrations,
    relative_error,
)

ACTIVATIONS = ("mixed", "channel", "spatial")
# Odd and non-square, a single channel, a 1×1 map, batch 1, one long enough for several threads.
SHAPES = [(2, 3, 5, 7), (1, 1, 9, 4), (3, 17, 1, 1), (1, 8, 1, 33), (2, 16, 56, 56)]
SMALL = (2, 3, 5, 7)


def inputs(
    shape: tuple[int, ...] = SMALL, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    logits, trunk = (torch.randn(shape, generator=generator) for _ in range(2))
    return (3 * logits).to(dtype).to(device), trunk.to(dtype).to(device)


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("residual", [True, False], ids=["arl", "nal"])
def test_exactness(
    place: Place, shape: tuple[int, ...], dtype: torch.dtype, residual: bool
) -> None:
    check_against_reference(
        place,
        ran_kernels.attention_gate,
        reference.attention_gate,
        inputs(shape, dtype, place.device),
        residual=residual,
    )


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["channel", "spatial"])
@pytest.mark.parametrize("residual", [True, False], ids=["arl", "nal"])
def test_exactness_of_the_other_activations(
    place: Place, activation: str, dtype: torch.dtype, residual: bool
) -> None:
    check_against_reference(
        place,
        ran_kernels.attention_gate,
        reference.attention_gate,
        inputs((2, 6, 5, 7), dtype, place.device),
        residual=residual,
        activation=activation,
    )


@kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("activation", "shape"), [("channel", (1, 300, 2, 3)), ("spatial", (1, 2, 65, 64))], ids=str
)
def test_groups_of_more_than_registers_hold(
    place: Place, activation: str, shape: tuple[int, ...], layout: str
) -> None:
    logits, trunk = (LAYOUTS[layout](t) for t in inputs(shape, device=place.device))
    check_against_reference(
        place,
        ran_kernels.attention_gate,
        reference.attention_gate,
        (logits, trunk),
        activation=activation,
    )


def maps_of(values: Tensor, shape: tuple[int, ...], layout: str, place: Place) -> Tensor:
    """(N, C, H, W) whose groups are `values` or equal ones: one for each channel."""
    return LAYOUTS[layout](values.reshape(1, -1, 1, 1).expand(shape)).to(place.device)


@everywhere
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_maps_are_exactly_zero(place: Place, dtype: torch.dtype, layout: str) -> None:
    # Their mean rounds, and the spatial activation multiplies what it loses by 316.
    values = torch.tensor([-161.63, 1 / 3, 3e4, 0.0, 1e-30, -3e38, 1e18, 7.7]).to(dtype)
    values = values.nan_to_num(posinf=6e4, neginf=-6e4)
    for size in ((1, 1), (7, 7), (14, 14), (23, 56)):
        logits = maps_of(values, (2, 8, *size), layout, place)
        trunk = torch.randn(logits.shape, dtype=torch.float64).to(dtype).to(place.device)
        (out,), (to_logits, to_trunk) = place.run(
            outputs_and_grads, ran_kernels.attention_gate, (logits, trunk), activation="spatial"
        )
        assert torch.equal(out, 1.5 * trunk)
        _, want_grads = outputs_and_grads(
            lambda z, t: (1 + torch.sigmoid((z - z.mean((2, 3), keepdim=True)) / 1e-5**0.5)) * t,
            (torch.zeros_like(logits).double(), trunk.double()),
        )
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
        assert relative_error(to_logits, want_grads[0]) < tolerance or size == (1, 1)
        torch.testing.assert_close(to_trunk.double(), want_grads[1], rtol=tolerance, atol=tolerance)


@everywhere
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["channel", "spatial"])
def test_nearly_constant_maps(place: Place, activation: str, layout: str) -> None:
    values = torch.tensor([-161.63, 1024.0, 1 / 3, 77.7, 4096.0])
    logits = maps_of(values, (2, 5, 14, 14), layout, place) * (
        1 + 2.0**-22 * torch.arange(196.0).remainder(3).reshape(14, 14).to(place.device)
    )
    trunk = torch.ones_like(logits)
    check_against_reference(
        place,
        ran_kernels.attention_gate,
        reference.attention_gate,
        (LAYOUTS[layout](logits), trunk),
        residual=False,
        activation=activation,
    )


@everywhere
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["channel", "spatial"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_squares_do_not_overflow(
    place: Place, dtype: torch.dtype, activation: str, layout: str
) -> None:
    # Groups beside each other of every size: each as if it were alone.
    logits, trunk = inputs((2, 8, 7, 7), torch.float64)
    big = torch.tensor([1e37, 1e18, 1.0, 3e19, 1e25, 1e-3, 1e30, 1e10], dtype=torch.float64)
    if dtype == torch.float64:
        big = torch.where(big > 1, big**8, big)
    channel = activation == "channel"
    big = big.repeat(7)[:49].reshape(7, 7) if channel else big.reshape(8, 1, 1)
    logits, trunk = (logits * big).to(dtype), trunk.to(dtype)
    top = logits.double().abs().amax(1 if channel else (2, 3), keepdim=True)
    small = (logits.double() / top.clamp_min(1)).requires_grad_()
    eps = 1e-5 / top.clamp_min(1) ** 2
    if channel:
        mask = small / small.norm(dim=1, keepdim=True)
    else:
        variance, mean = torch.var_mean(small, (2, 3), correction=0, keepdim=True)
        mask = torch.sigmoid((small - mean) / torch.sqrt(variance + eps))
    exact = (1 + mask) * trunk.double()
    incoming = torch.randn(exact.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def run() -> tuple[Tensor, Tensor]:
        given = [LAYOUTS[layout](t).to(place.device) for t in (logits, trunk)]
        out = ran_kernels.attention_gate(given[0].requires_grad_(), given[1], activation=activation)
        (grad,) = torch.autograd.grad(out, given[0], incoming.to(place.device))
        return out.detach().cpu(), grad.cpu()

    got, grad = place.run(run)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2.0**-7)
    for n, c in itertools.product(range(2), range(8)):
        assert relative_error(got[n, c], exact[n, c].detach()) < tolerance
    if dtype == torch.float64:  # in which the smallest gradients do not underflow
        (want,) = torch.autograd.grad(exact, small, incoming)
        torch.testing.assert_close(grad * top.clamp_min(1), want, rtol=1e-9, atol=1e-9)


@kernels
@pytest.mark.parametrize("of_logits", LAYOUTS)
@pytest.mark.parametrize("of_trunk", LAYOUTS)
def test_layouts(place: Place, of_logits: str, of_trunk: str) -> None:
    logits, trunk = inputs(device=place.device)
    want, want_grads = outputs_and_grads(reference.attention_gate, (logits, trunk))
    logits, trunk = LAYOUTS[of_logits](logits), LAYOUTS[of_trunk](trunk)
    (out,), grads = place.run(outputs_and_grads, ran_kernels.attention_gate, (logits, trunk))
    torch.testing.assert_close(out, want[0])
    torch.testing.assert_close(grads, want_grads)
    # trunk's own strides where it is dense, and what PyTorch makes of them where it is not.
    assert out.stride() == torch.empty_like(trunk).stride()


@everywhere
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [True, False], ids=["arl", "nal"])
def test_gradcheck(place: Place, activation: str, residual: bool) -> None:
    logits, trunk = (t.requires_grad_() for t in inputs((2, 3, 2, 3), torch.float64, place.device))

    def gate(logits: Tensor, trunk: Tensor) -> Tensor:
        return ran_kernels.attention_gate(logits, trunk, residual=residual, activation=activation)

    assert place.gradcheck(gate, (logits, trunk))


@kernels
def test_special_values_propagate(place: Place) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -100.0, 100.0, 3e38]
    pairs = torch.tensor(list(itertools.product(values, values)))
    logits, trunk = (pairs[:, i].reshape(1, 9, 3, 3).to(place.device) for i in range(2))
    for residual in (True, False):
        want, want_grads = outputs_and_grads(
            reference.attention_gate, (logits, trunk), residual=residual
        )
        got, grads = place.run(
            outputs_and_grads, ran_kernels.attention_gate, (logits, trunk), residual=residual
        )
        torch.testing.assert_close(got, want, equal_nan=True)
        torch.testing.assert_close(grads, want_grads, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_value_survives_the_cpu_kernel(dtype: torch.dtype) -> None:
    # 0 * T = -0 or 0 and 1 * T = T exactly, so M = 1 shows widening and narrowing alone.
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    trunk = every.reshape(1, 16, 64, 64)
    with ran_kernels.backend("native"):
        out = ran_kernels.attention_gate(torch.full_like(trunk, -torch.inf), trunk)
    number = ~trunk.isnan()
    assert torch.equal(out.view(torch.int16)[number], trunk.view(torch.int16)[number])
    assert out[~number].isnan().all()


@kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    (out,), grads = place.run(
        outputs_and_grads, ran_kernels.attention_gate, inputs(shape, device=place.device)
    )
    assert out.shape == shape
    assert [grad.shape for grad in grads] == [shape, shape]


@kernels
def test_only_logits_and_trunk_are_saved_for_backward(place: Place) -> None:
    logits, trunk = (t.requires_grad_() for t in inputs(device=place.device))
    saved = saved_by(lambda: place.run(ran_kernels.attention_gate, logits, trunk))
    assert {t.data_ptr() for t in saved} == {logits.data_ptr(), trunk.data_ptr()}


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    logits, trunk = (LAYOUTS[layout](t) for t in inputs(device=place.device))
    grad = torch.randn_like(trunk)
    forward = getattr(torch.ops.ran.attention_gate, overload)
    leaves = (logits.requires_grad_(), trunk.requires_grad_())
    backward = getattr(torch.ops.ran.attention_gate_backward, overload)
    for activation in range(len(ACTIVATIONS)):
        opcheck(forward, (*leaves, True, activation))
        given = (grad, logits.detach(), trunk.detach(), True, activation)
        opcheck(backward, given, test_utils=OF_DERIVATIVES)


@kernels
def test_compile_notices_another_backend(place: Place) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ran_kernels.attention_gate, fullgraph=True, backend="eager")
    args = inputs(device=place.device)
    with ran_kernels.backend("reference"):
        assert torch.equal(compiled(*args), reference.attention_gate(*args))
    assert torch.equal(place.run(compiled, *args), place.run(ran_kernels.attention_gate, *args))


@kernels
def test_export(place: Place) -> None:
    class Gate(torch.nn.Module):
        def forward(self, logits: Tensor, trunk: Tensor) -> Tensor:
            return ran_kernels.attention_gate(logits, trunk)

    batch = torch.export.Dim("batch", min=2, max=64)
    args = inputs((3, 4, 5, 6), device=place.device)
    program = place.run(torch.export.export, Gate(), args, dynamic_shapes=({0: batch}, {0: batch}))
    other = inputs((5, 4, 5, 6), device=place.device)
    torch.testing.assert_close(program.module()(*other), reference.attention_gate(*other))


def test_second_derivative_with_the_reference() -> None:
    leaves = tuple(t.requires_grad_() for t in inputs((1, 2, 2, 2), torch.float64))
    with ran_kernels.backend("reference"):
        assert torch.autograd.gradgradcheck(ran_kernels.attention_gate, leaves)


def test_mask_is_what_the_gate_applies() -> None:
    logits, trunk = inputs()
    for activation in ACTIVATIONS:
        mask = ran_kernels.attention_mask(logits, activation)
        gated = ran_kernels.attention_gate(logits, trunk, residual=False, activation=activation)
        torch.testing.assert_close(gated, mask * trunk)


@pytest.mark.parametrize(
    ("logits", "trunk", "options", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), {}, ValueError,
         r"logits: expected shape \(2, 3, 4, 5\) as trunk, got \(2, 3, 4, 4\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), {}, ValueError,
         r"trunk: expected \(N, C, H, W\), got shape \(2, 3, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.zeros(2, 3, 4, 4), {}, TypeError,
         r"logits: expected float64, float32, float16 or bfloat16, got int64"),
        (torch.zeros(2, 3, 4, 4), [1.0], {}, TypeError, r"trunk: expected a tensor, got list"),
        (torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, 3, 4, 4), {}, ValueError,
         r"logits: expected device cpu as trunk, got meta"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), {"activation": "softmax"}, ValueError,
         r"activation: expected one of 'mixed', 'channel', 'spatial', got 'softmax'"),
    ],
    ids=["shape", "dimensions", "integers", "no-tensor", "device", "activation"],
)  # fmt: skip
def test_bad_arguments_are_named(
    logits: Any, trunk: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.attention_gate(logits, trunk, **options)


@pytest.mark.gpu
def test_current_stream_and_graph_capture() -> None:
    logits, trunk = inputs((4, 64, 28, 28), device="cuda")
    want = reference.attention_gate(logits, trunk)
    for name in ("native", "triton"):
        with ran_kernels.backend(name):
            ran_kernels.attention_gate(logits, trunk)  # Triton compiles before the capture
            graph = torch.cuda.CUDAGraph()
            static = logits.clone()
            with torch.cuda.graph(graph):
                out = ran_kernels.attention_gate(static, trunk)
            static.copy_(logits.flip(0))
            graph.replay()
            torch.testing.assert_close(out, reference.attention_gate(logits.flip(0), trunk))
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                torch.cuda._sleep(10_000_000)
                late = logits * 1
                out = ran_kernels.attention_gate(late, trunk)
            side.synchronize()
            torch.testing.assert_close(out, want)
