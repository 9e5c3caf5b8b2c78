"""Batch normalisation with ReLU and additions on every backend against plain PyTorch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference
from ran_kernels.batch_norm_parts import BATCH_NORM_STATISTICS

from ..watching import kept_by
from .cbam_cases import NATIVE_LAYOUTS, SHAPES, features, fits
from .harness import (
    DTYPES,
    LAYOUTS,
    OF_DERIVATIVES,
    Place,
    check_against_reference,
    kernels,
    outputs_and_grads,
    registrations,
    relative_error,
)
from .norm_cases import IMAGES, SMALL, affine, called, images, running
from .operators import listed

NAMES = list(IMAGES)
each_function = pytest.mark.parametrize("name", NAMES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@kernels
@each_function
@each_mode
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_exactness(
    place: Place, name: str, training: bool, dtype: torch.dtype, layout: str
) -> None:
    shapes = [
        shape
        for shape in SHAPES
        if fits(place, shape) and shape[0] * shape[2] * shape[3] > 3  # three values are all ends
    ]
    turn = (NAMES.index(name), training, DTYPES.index(dtype), NATIVE_LAYOUTS.index(layout))
    for shape in place.share(shapes, *turn, of=3):
        of = images(name, shape, dtype, place.device, layout)
        check_against_reference(
            place,
            called(ran_kernels, name, training=training),
            called(reference, name, training=training),
            [*of, *affine(of[0])],
        )


@kernels
@each_function
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place: Place, name: str, layout: str) -> None:
    """Of the second image, where there is one, too."""
    every = list(LAYOUTS)
    others = place.share(every, NAMES.index(name), every.index(layout))
    for of_other in others if IMAGES[name] > 1 else [layout]:
        given = images(name, device=place.device)
        # Strided small operands too, whose every second element would be a NaN.
        small = [torch.stack([t, t * torch.nan], 1)[:, 0] for t in affine(given[0])]
        want = outputs_and_grads(called(reference, name, training=True), [*given, *small])
        given = [LAYOUTS[how](t) for how, t in zip((layout, of_other), given, strict=False)]
        op = called(ran_kernels, name, training=True)
        got = place.run(outputs_and_grads, op, [*given, *small])
        torch.testing.assert_close(got, want)
        channels_last = layout == "channels_last"
        format = torch.channels_last if channels_last else torch.contiguous_format
        assert all(t.is_contiguous(memory_format=format) for t in got[0])


@kernels
@each_function
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_gradcheck(place: Place, name: str, layout: str) -> None:
    """In training and in evaluation, with and without weight and bias."""
    given = images(name, (2, 2, 3, 3), torch.float64, place.device, layout)
    for training in (True, False):
        turn = (NAMES.index(name), training, NATIVE_LAYOUTS.index(layout))
        for small in place.share((affine(given[0]), [None, None]), *turn):
            leaves = [t if t is None else t.requires_grad_() for t in (*given, *small)]
            op = called(ran_kernels, name, training=training)
            assert place.run(torch.autograd.gradcheck, op, leaves, fast_mode=True)


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 5, 9, 31), (2, 70, 64, 65)], ids=str)
def test_a_mean_ten_thousand_deviations_from_zero(
    place: Place, layout: str, shape: tuple[int, ...]
) -> None:
    """No worse than twice PyTorch's error, statistics and results, far from zero in any way."""
    if place.interpreted:
        shape = (shape[0], 5, *shape[2:])  # of fewer channels as many parts
    x = features(shape, device=place.device, layout=layout) + 1e4
    # One value alone far out: the first, one that statistics may be taken from, or any other.
    ends = (None, (0, 0, 0, 0), (0, 0, shape[2] // 2, shape[3] // 2), (1, 2, 5, 3))
    for at in place.share(ends, NATIVE_LAYOUTS.index(layout), shape[0] == 2):
        if at is not None:
            x = x.clone()
            x[at] = -1e6
        exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        _, mean, variance = place.run(BATCH_NORM_STATISTICS[place.backend], x, None)
        assert relative_error(variance, exact[0]) < 2e-6
        rounding = torch.finfo(x.dtype).eps * exact[1].abs()
        assert ((mean - exact[1]).abs() <= 1e-6 * exact[0].sqrt() + rounding).all()
        outs, errors = [], []
        for module, t in ((reference, x.double()), (reference, x), (ran_kernels, x)):
            outs.append(place.run(called(module, "batch_norm", training=True), t, None, None))
            errors.append(relative_error(outs[-1], outs[0]))
        assert errors[2] <= 2 * errors[1] + 1e-7


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_a_constant_channel_has_no_variance(place: Place, layout: str) -> None:
    x = torch.tensor([1e-3, 1 / 3, 1e6 + 1 / 3], device=place.device)
    x = LAYOUTS[layout](x[None, :, None, None].expand(3, 3, 11, 13))
    _, mean, variance = place.run(BATCH_NORM_STATISTICS[place.backend], x, None)
    assert torch.equal(mean, x[0, :, 0, 0])
    assert torch.equal(variance, torch.zeros_like(variance))


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_the_statistics_are_those_of_the_rounded_sum(
    place: Place, dtype: torch.dtype, layout: str
) -> None:
    a, b = images("add_batch_norm_relu", (3, 20, 9, 11), dtype, place.device, layout)
    total, mean, variance = place.run(BATCH_NORM_STATISTICS[place.backend], a, b)
    assert torch.equal(total, a + b)
    _, *of_total = place.run(BATCH_NORM_STATISTICS[place.backend], total, None)
    assert torch.equal(mean, of_total[0])
    assert torch.equal(variance, of_total[1])


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@each_mode
def test_the_mask_is_that_of_the_result(
    place: Place, dtype: torch.dtype, layout: str, training: bool
) -> None:
    """Where a result is zero its gradient is, and nowhere else, on results as close to zero as
    rounding comes: each value and its bias cancel."""
    channels = 16 if place.interpreted else 64  # each is a value that cancels
    x = features((2, channels, 16, 15), dtype, place.device, layout)
    weight = affine(x)[0]
    values = x[0, :, 3, 4]  # of each channel the one that will be about 0
    with torch.no_grad():
        alone = called(ran_kernels, "batch_norm", training=training)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x, weight = x.to(wide), weight.to(wide)
        bias = -place.run(alone, x, weight, None)[0, :, 3, 4]
    assert values.shape == bias.shape
    tiny = torch.finfo(dtype).smallest_normal
    shifts = (0, tiny, -tiny, torch.finfo(dtype).eps)
    turn = (DTYPES.index(dtype), NATIVE_LAYOUTS.index(layout), training)
    for shift in place.share(shifts, *turn):
        leaves = [x.to(dtype), weight, bias + shift]
        leaf = leaves[0].clone(memory_format=torch.preserve_format).requires_grad_()
        op = called(ran_kernels, "batch_norm_relu", training=False)
        if training:
            # The gradient of x mixes all positions; that of the bias counts those that pass.
            leaves[2].requires_grad_()
            op = called(ran_kernels, "batch_norm_relu", training=True)
        out = place.run(op, leaf, *leaves[1:])
        grads = torch.autograd.grad(out, leaves[2] if training else leaf, torch.ones_like(out))
        passed = (out > 0).sum((0, 2, 3)) if training else out > 0
        assert torch.equal(
            grads[0] if training else grads[0] != 0,
            passed.to(grads[0].dtype) if training else passed,
        )


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "vanishing"), [(torch.float16, 2.0**-25), (torch.bfloat16, 2.0**-134)], ids=str
)
def test_a_result_that_rounds_to_zero_lets_nothing_through(
    place: Place, dtype: torch.dtype, vanishing: float, layout: str
) -> None:
    """As PyTorch's ReLU, which sees the rounded result."""
    x = LAYOUTS[layout](torch.zeros(1, 2, 3, 17, dtype=dtype, device=place.device))
    channels = torch.tensor([[0, 0], [1, 1], [1, 1], [vanishing, vanishing * 1.5]]).to(x.device)
    for module in (ran_kernels, reference):
        leaf = x.detach().requires_grad_()
        out = place.run(module.batch_norm_relu, leaf, *channels)
        assert torch.equal(out > 0, torch.tensor([False, True])[:, None, None].expand(out.shape))
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert torch.equal(grad != 0, out > 0)


@kernels
@pytest.mark.parametrize(
    ("name", "images_kept"),
    [("batch_norm", 1), ("batch_norm_relu", 1), ("add_batch_norm_relu", 1),
     ("batch_norm_add_relu", 2)],
)  # fmt: skip
def test_what_is_kept(place: Place, name: str, images_kept: int) -> None:
    given = [t.requires_grad_() for t in images(name, (2, 3, 32, 32), device=place.device)]
    small = [t.requires_grad_() for t in affine(given[0])]
    op = called(ran_kernels, name, training=True)
    kept = kept_by(lambda: place.run(op, *given, *small))
    assert sum(t.numel() == given[0].numel() for t in kept) == images_kept
    assert sum(t.numel() for t in kept) <= images_kept * given[0].numel() + 4 * 3


@kernels
@each_function
def test_low_precision_images_with_parameters_in_float32(place: Place, name: str) -> None:
    """As autocast makes them: the channels' gradients and statistics stay float32."""
    for dtype in (torch.float16, torch.bfloat16):
        exact, errors = None, []
        for module, wide in ((reference, True), (reference, False), (ran_kernels, False)):
            given = images(name, dtype=dtype, device=place.device)
            small = affine(given[0].float())
            statistics = running(given[0].float())
            if wide:
                given, small, statistics = (
                    [t.double() for t in ts] for ts in (given, small, statistics)
                )
            leaves = [t.requires_grad_() for t in (*given, *small)]
            call = getattr(module, name)
            outs = listed(place.run(call, *given, *statistics, *small, training=True))
            grads = torch.autograd.grad([t.double().sin().sum() for t in outs], leaves)
            found = [*outs, *grads, *statistics]
            if exact is None:
                exact = found
            else:
                assert all(t.dtype == dtype for t in (*outs, *grads[:-2]))
                assert all(t.dtype == torch.float32 for t in (*grads[-2:], *statistics))
                errors.append([relative_error(*pair) for pair in zip(found, exact, strict=True)])
        for theirs, ours in zip(*errors, strict=True):
            assert ours <= 3 * theirs + torch.finfo(dtype).eps / 2


@kernels
@each_function
@each_mode
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)], ids=str)
def test_empty(place: Place, name: str, training: bool, shape: tuple[int, ...]) -> None:
    given = [t.requires_grad_() for t in images(name, shape, device=place.device)]
    statistics, small = running(given[0]), [t.requires_grad_() for t in affine(given[0])]
    before = [t.clone() for t in statistics]
    op = getattr(ran_kernels, name)
    outs = listed(place.run(op, *given, *statistics, *small, training=training))
    assert all(t.shape == shape for t in outs)
    grads = torch.autograd.grad([t.sum() for t in outs], [*given, *small], allow_unused=True)
    assert all(t is None or not t.any() for t in grads)
    assert all(map(torch.equal, statistics, before))


@kernels
@each_function
def test_one_value_per_channel_cannot_be_trained_on(place: Place, name: str) -> None:
    given = images(name, (1, 3, 1, 1), device=place.device)
    first = "a" if name == "add_batch_norm_relu" else "x"
    message = rf"{first}: expected more than 1 value per channel when training, got shape \(1, 3"
    with pytest.raises(ValueError, match=message):
        place.run(called(ran_kernels, name, training=True), *given)
    place.run(called(ran_kernels, name, training=False), *given)


@kernels
def test_either_result_of_the_sum_may_go_unused(place: Place) -> None:
    for used in (0, 1):
        found = []
        for module in (ran_kernels, reference):
            given = [t.requires_grad_() for t in images("add_batch_norm_relu")]
            small = [t.requires_grad_() for t in affine(given[0])]
            out = place.run(called(module, "add_batch_norm_relu", training=True), *given, *small)
            leaves = [*given, *small]
            found.append(torch.autograd.grad(out[used].sin().sum(), leaves, allow_unused=True))
        torch.testing.assert_close(*found)


@kernels
@each_function
@each_mode
def test_gradients_of_some_inputs_alone(place: Place, name: str, training: bool) -> None:
    given = images(name, device=place.device)
    everything = [*given, *affine(given[0])]
    for wanted in place.share(range(len(everything)), NAMES.index(name), training):
        found = []
        for module in (ran_kernels, reference):
            leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(everything)]
            outs = listed(place.run(called(module, name, training=training), *leaves))
            total = sum(t.sin().sum() for t in outs if t.requires_grad)
            assert isinstance(total, Tensor)
            found.append(torch.autograd.grad(total, leaves[wanted])[0])
        torch.testing.assert_close(*found)


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    """The four passes with every term, and with as few as there can be."""
    overload = "triton" if place.backend == "triton" else "default"
    for dtype, every in ((torch.float32, True), (torch.bfloat16, False)):
        x, other = images("add_batch_norm_relu", SMALL, dtype, place.device, layout)
        wide = x.float()
        norm = [*running(wide), *(affine(wide) if every else (None, None))]
        term, sums = (other, affine(wide)) if every else (None, (None, None))
        for name, args in (
            ("statistics", (x, term)),
            ("apply", (x, term, *norm, 1e-5, every)),
            ("reduce", (other, x, term, *norm, 1e-5, every)),
            ("grad", (other, x, term, *norm, *sums, 70, 1e-5, every)),
        ):
            op = getattr(getattr(torch.ops.ran, f"batch_norm_{name}"), overload)
            opcheck(op, args, test_utils=OF_DERIVATIVES)  # they have no derivative of their own


@kernels
def test_torch_export(place: Place) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return ran_kernels.nn.norm_relu(self.norm, x)

    network = Network().eval()
    x = features(SMALL)
    exported = place.run(torch.export.export, network, (x,))
    assert not any("ran." in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), F.relu(network.norm(x)))


A = torch.zeros(2, 3, 4, 4)
C = torch.zeros(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"a": [1.0]}, TypeError, r"a: expected a tensor, got list"),
        ({"a": A[0]}, ValueError, r"a: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        ({"b": A[:1]}, ValueError, r"b: expected shape \(2, 3, 4, 4\) as a, got \(1, 3, 4, 4\)"),
        ({"b": A.to("meta")}, ValueError, r"b: expected device cpu as a, got meta"),
        ({"weight": C[:2]}, ValueError, r"weight: expected shape \(3,\) \(C,\) of a, got \(2,\)"),
        ({"bias": A}, ValueError, r"bias: expected 1 dimensions, got shape"),
        ({"running_mean": None}, ValueError, r"running_mean: expected a tensor as the other"),
        ({"running_var": None}, ValueError, r"running_var: expected a tensor as the other"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError,
         r"running_mean: expected a tensor in evaluation, got None"),
        ({"running_var": torch.ones(3, requires_grad=True)}, ValueError,
         r"running_var: expected a tensor without a gradient, got one that wants it"),
        ({"momentum": None}, TypeError, r"momentum: expected a number, got None"),
        ({"eps": "1"}, TypeError, r"eps: expected a number, got '1'"),
        ({"eps": -1.0}, ValueError, r"eps: expected at least 0, got -1.0"),
    ],
    ids=["no-tensor", "dimensions", "other-shape", "device", "weight", "bias", "mean", "var",
         "no-statistics", "gradient", "momentum", "eps", "negative"],
)  # fmt: skip
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "a": A, "b": A, "running_mean": C, "running_var": C, "training": True
    }  # fmt: skip
    with pytest.raises(error, match=f"^{message}"):
        ran_kernels.add_batch_norm_relu(**{**arguments, **options})


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ((C,), r"statistics: expected a pair of tensors, .* got \(Tensor\)"),
        ((), r"statistics: expected a pair of tensors, .* got \(\)"),
        (A, r"statistics: expected a pair of tensors, mean and variance, got Tensor"),
        ((C, None), r"statistics: expected a pair of tensors, .* got \(Tensor, NoneType\)"),
    ],
    ids=["one", "none", "tensor", "half"],
)
def test_statistics_come_in_pairs(backend: str, statistics: Any, message: str) -> None:
    """Not that what is missing is found without a word."""
    for name in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu"):
        given = images(name, tuple(A.shape))
        with ran_kernels.backend(backend), pytest.raises(TypeError, match=f"^{message}"):
            getattr(ran_kernels, name)(*given, None, None, training=True, statistics=statistics)
