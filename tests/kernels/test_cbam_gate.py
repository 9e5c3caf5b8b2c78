"""cbam_gate on every backend against plain PyTorch."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference

from ..watching import saved_by
from .cbam_cases import (
    NATIVE_LAYOUTS,
    SHAPES,
    channel_logits,
    features,
    fits,
    spatial_logits,
)
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
)

# Which of (channel_logits, spatial_logits, shortcut) are given.
TERMS = list(itertools.product((True, False), repeat=3))
SMALL = (2, 3, 5, 7)


def inputs(
    shape: tuple[int, ...] = SMALL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
    terms: tuple[bool, ...] = (True, True, True),
) -> list[Tensor | None]:
    x = features(shape, dtype, device, layout)
    shortcut = features(shape, dtype, device, layout, seed=3)
    optional = (channel_logits(x), spatial_logits(x), shortcut)
    return [x, *(t if given else None for t, given in zip(optional, terms, strict=True))]


def gate(relu: bool, op: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """The operator with all tensors positional. Without `op`, the public one."""

    def run(x: Tensor, channel: Tensor, spatial: Tensor, shortcut: Tensor) -> Tensor:
        return (op or ran_kernels.cbam_gate)(x, channel, spatial, shortcut=shortcut, relu=relu)

    return run


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_exactness(
    place: Place, shape: tuple[int, ...], dtype: torch.dtype, layout: str, relu: bool
) -> None:
    if fits(place, shape):
        args = inputs(shape, dtype, place.device, layout)
        check_against_reference(place, gate(relu), gate(relu, reference.cbam_gate), args)


@kernels
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_every_choice_of_terms(place: Place, terms: tuple[bool, ...], layout: str) -> None:
    for dtype, relu in itertools.product((torch.float32, torch.bfloat16), (True, False)):
        args = inputs(SMALL, dtype, place.device, layout, terms)
        check_against_reference(place, gate(relu), gate(relu, reference.cbam_gate), args)


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_shortcut", LAYOUTS)
def test_layouts(place: Place, layout: str, of_shortcut: str) -> None:
    x, channel, spatial, shortcut = inputs(device=place.device)
    assert x is not None
    assert shortcut is not None
    want, want_grads = outputs_and_grads(
        gate(True, reference.cbam_gate), (x, channel, spatial, shortcut)
    )
    args = (LAYOUTS[layout](x), channel, spatial, LAYOUTS[of_shortcut](shortcut))
    (out,), grads = place.run(outputs_and_grads, gate(True), args)
    torch.testing.assert_close(out, want[0])
    torch.testing.assert_close(grads, want_grads)
    channels_last = layout == "channels_last"
    assert out.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_gradcheck(place: Place, layout: str, relu: bool, terms: tuple[bool, ...]) -> None:
    args = inputs((2, 3, 2, 3), torch.float64, place.device, layout, terms)
    leaves = [None if t is None else t.requires_grad_() for t in args]
    assert place.gradcheck(gate(relu), leaves)


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_special_values_propagate(place: Place, layout: str) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -100.0, 100.0, 3e38]
    x = torch.tensor(values).reshape(1, 1, 3, 3).expand(81, 9, 3, 3)
    pairs = torch.tensor(list(itertools.product(values, values)))
    channel = pairs[:, :1].expand(81, 9)
    spatial = pairs[:, 1].reshape(81, 1, 1, 1).expand(81, 1, 3, 3)
    args = [LAYOUTS[layout](x.to(place.device)), channel.to(place.device), spatial.to(place.device)]
    for relu in (True, False):
        want, want_grads = outputs_and_grads(gate(relu, reference.cbam_gate), (*args, args[0]))
        got, grads = place.run(outputs_and_grads, gate(relu), (*args, args[0]))
        torch.testing.assert_close(got, want, equal_nan=True)
        # What is added up differs in its last bits, and 3e38 turns that into infinity or not.
        for a, b in zip(grads, want_grads, strict=True):
            number = a.isfinite() & b.isfinite()
            torch.testing.assert_close(a[number], b[number])
            assert torch.equal(a.isnan(), b.isnan())


@kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    for relu in (True, False):
        args = inputs(shape, device=place.device)
        got, grads = place.run(outputs_and_grads, gate(relu), args)
        assert got[0].shape == shape
        assert [grad.shape for grad in grads] == [t.shape for t in args if t is not None]
        assert not any(grad.count_nonzero() for grad in grads)


@kernels
def test_the_shortcuts_gradient_is_the_incoming_one(place: Place) -> None:
    args = [t for t in inputs(device=place.device) if t is not None]
    leaves = [t.requires_grad_() for t in args]
    out = place.run(gate(False), *leaves)
    incoming = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, leaves[3], incoming)
    assert grad.data_ptr() == incoming.data_ptr()


@kernels
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_saved_for_backward(place: Place, relu: bool) -> None:
    leaves = [t.requires_grad_() for t in inputs(device=place.device) if t is not None]
    outs: list[Tensor] = []
    saved = saved_by(lambda: outs.append(place.run(gate(relu), *leaves)))
    expected = {t.data_ptr() for t in leaves[:3]} | ({outs[0].data_ptr()} if relu else set())
    assert {t.data_ptr() for t in saved} == expected


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    ops = torch.ops.ran
    for terms, relu in itertools.product([(True, True, True), (False, True, False)], (True, False)):
        args = inputs(device=place.device, layout=layout, terms=terms)
        leaves = [None if t is None else t.requires_grad_() for t in args]
        opcheck(getattr(ops.cbam_gate, overload), (*leaves, relu))
    x, channel, spatial, shortcut = inputs(device=place.device, layout=layout)
    assert x is not None
    grad_maps = torch.randn(2, 2, 5, 7).to(x)
    index = torch.randint(0, 3, (2, 5, 7), dtype=torch.int32, device=x.device)
    of_pools = (channel, channel, torch.randint(0, 35, (2, 3)).to(index))

    def check(name: str, *args: Any) -> None:
        opcheck(getattr(getattr(ops, name), overload), args, test_utils=OF_DERIVATIVES)

    for out in (None, shortcut):
        check("cbam_grad_spatial", shortcut, x, channel, spatial, out)
    for grad, ss, maps, places in (
        (shortcut, spatial, grad_maps, index),
        (None, None, grad_maps, index),
        (shortcut, None, None, None),
    ):
        check("cbam_grad_channel", grad, x, channel, ss, maps, places)
        for sc, pools in ((channel, of_pools), (None, (None, None, None))):
            check("cbam_grad_x", x, grad, sc, ss, maps, places, *pools)


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x: expected a tensor, got list"),
        ({"x": X[0]}, ValueError, r"x: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        ({"channel_logits": torch.zeros(2, 4)}, ValueError,
         r"channel_logits: expected shape \(2, 3\) \(N, C\) of x, got \(2, 4\)"),
        ({"spatial_logits": X}, ValueError,
         r"spatial_logits: expected shape \(2, 1, 4, 4\) \(N, 1, H, W\) of x, got \(2, 3, 4, 4\)"),
        ({"shortcut": X[:1]}, ValueError,
         r"shortcut: expected shape \(2, 3, 4, 4\) as x, got \(1, 3, 4, 4\)"),
        ({"shortcut": X.int()}, TypeError, r"shortcut: expected float64, .* got int32"),
        ({"shortcut": X.to("meta")}, ValueError, r"shortcut: expected device cpu as x, got meta"),
    ],
    ids=["no-tensor", "dimensions", "channel", "spatial", "shortcut", "integers", "device"],
)  # fmt: skip
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran_kernels.cbam_gate(**{"x": X, **options})
