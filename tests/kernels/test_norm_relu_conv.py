"""1×1 convolutions with the norm inside as one node, against PyTorch and the operators alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import ran_kernels
from ran_kernels import Convolution, reference
from ran_kernels.norm_relu_conv_parts import out_size

from ..watching import Calls, kept_by
from .cbam_cases import features
from .harness import Place, triton_only
from .norm_cases import affine, running

EPS = 1e-5


def last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def composed(
    x: Tensor,
    *channels: Any,
    convs: Any,
    addend: Any = None,
    trunk: Any = None,
    residual: bool = True,
    statistics: Any = None,
    **options: Any,
) -> tuple[Tensor, list[ran_kernels.Measured]]:
    """`norm_relu_conv` in plain PyTorch."""
    activation = reference.batch_norm_relu(x, *channels, **options)
    outs = [F.conv2d(activation, *conv) for conv in convs]
    if addend is not None:
        outs = [outs[0] + addend]
    if trunk is not None:
        outs = [reference.attention_gate(outs[0], trunk, residual=residual)]
    found = [(y, reference.batch_norm_statistics(y, None)) for y in outs]
    return x, [ran_kernels.Measured(y, (mean, variance)) for y, (_, mean, variance) in found]


#: Of the convolutions of one activation: out channels and stride.
CONVS = {"narrow": [(4, 1)], "wide": [(13, 1)], "halved": [(5, 2)], "two": [(4, 1), (7, 2)]}
#: Whether there is an addend, and whether the norm is in training.
WAYS = [
    ("narrow", True, True),
    ("wide", False, True),
    ("wide", True, False),
    ("halved", True, True),
    ("two", False, True),
    ("two", False, False),
    ("narrow", False, False),
]
X = (2, 6, 5, 4)


def inputs(convs: str, added: bool, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, the norm's weight and bias, the convolutions' weights, and the addend."""
    x = last(2 * features(X, dtype, device) + 1)
    weights = [
        (features((out, X[1], 1, 1), torch.float64, seed=out) / 2).to(x) for out, _ in CONVS[convs]
    ]
    out, stride = CONVS[convs][0]
    addend = [last(features((X[0], out, *out_size(X[2:], stride)), dtype, device, seed=3))]
    return [x, *affine(x), *weights, *(addend if added else [])]


def node(
    of: Callable[..., Any],
    convs: str,
    *,
    training: bool,
    statistics: list[Tensor] | None = None,
    given: bool = False,
    gate: bool | None = None,
) -> Callable[..., tuple[Tensor, ...]]:
    """`of` as a function of `inputs`; x and the results are its own.

    Unless `gate` is None the addend is a trunk, gated with attention residual learning or without.
    """

    def beside(images: tuple[Tensor, ...]) -> dict[str, Any]:
        if gate is None or not images:
            return {"addend": images[0] if images else None}
        return {"trunk": images[0], "residual": gate}

    def call(x: Tensor, weight: Tensor, bias: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        forms = CONVS[convs]
        known = tuple(reference.batch_norm_statistics(x.detach(), None)[1:]) if given else None
        again, found = of(
            x,
            *(statistics or running(x)),
            weight,
            bias,
            convs=[Convolution(w, None, s) for w, (_, s) in zip(more, forms, strict=False)],
            **beside(more[len(forms) :]),
            training=training,
            statistics=known,
        )
        return again.sin(), *(y for y, _ in found)

    return call


def gradients(call: Callable[..., Any], given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [t.detach().requires_grad_() for t in given]
    outs = call(*leaves)
    total = sum(((i + 1) * t.double()).sin().sum() for i, t in enumerate(outs))
    assert isinstance(total, Tensor)
    return [t.detach() for t in outs], list(torch.autograd.grad(total, leaves))


@triton_only
@pytest.mark.parametrize(("convs", "added", "training"), WAYS)
def test_node(place: Place, convs: str, added: bool, training: bool) -> None:
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        given = inputs(convs, added, dtype, place.device)
        found = []
        for of in (ran_kernels.norm_relu_conv, composed):
            statistics = running(given[0])
            call = node(of, convs, training=training, statistics=statistics)
            outs, grads = place.run(gradients, call, given)
            found.append([*outs, *grads, *statistics])
        torch.testing.assert_close(*found, rtol=limit, atol=limit)


@triton_only
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_gate(place: Place, residual: bool, training: bool) -> None:
    for convs, dtype, limit in (
        ("narrow", torch.float64, 1e-11),
        ("halved", torch.float64, 1e-11),
        ("narrow", torch.float32, 1e-4),
    ):
        given = inputs(convs, True, dtype, place.device)
        found = []
        for of in (ran_kernels.norm_relu_conv, composed):
            statistics = running(given[0])
            call = node(of, convs, training=training, statistics=statistics, gate=residual)
            outs, grads = place.run(gradients, call, given)
            found.append([*outs, *grads, *statistics])
        torch.testing.assert_close(*found, rtol=limit, atol=limit)


@triton_only
def test_a_gate_keeps_no_logits_and_measures_what_it_gives(place: Place) -> None:
    given = [t.requires_grad_() for t in inputs("narrow", True, torch.float64, place.device)]
    x, weight, bias, conv, trunk = given
    options: dict[str, Any] = {"convs": [Convolution(conv)], "training": True, "trunk": trunk}
    found = []

    def run() -> None:
        with Calls() as calls:
            _, ((y, pair),) = place.run(
                ran_kernels.norm_relu_conv, x, None, None, weight, bias, **options
            )
        assert calls.counts["ran::norm_relu_conv"] == 1
        assert calls.counts["ran::attention_gate"] == 0
        found.append((y.detach(), pair))

    sizes = sorted(t.numel() for t in kept_by(run))
    assert sizes == sorted([*(t.numel() for t in given), X[1], X[1]])
    ((y, pair),) = found
    torch.testing.assert_close(list(pair), list(reference.batch_norm_statistics(y, None)[1:]))


@triton_only
def test_gradients_of_a_gates_inputs_one_by_one(place: Place) -> None:
    everything = inputs("narrow", True, torch.float64, place.device)
    for wanted in range(len(everything)):
        found = []
        for of in (ran_kernels.norm_relu_conv, composed):
            leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(everything)]
            outs = place.run(node(of, "narrow", training=True, gate=True), *leaves)
            total = outs[1].sin().sum()
            found.append(place.run(torch.autograd.grad, total, leaves[wanted]))
        torch.testing.assert_close(*found)


@triton_only
def test_statistics_given_and_found(place: Place) -> None:
    given = inputs("two", False, torch.float64, place.device)
    want = gradients(node(composed, "two", training=True), given)
    call = node(ran_kernels.norm_relu_conv, "two", training=True, given=True)
    torch.testing.assert_close(place.run(gradients, call, given), want)
    for training in (True, False):
        options: dict[str, Any] = {"convs": [Convolution(given[3])], "training": training}
        _, ((y, pair),) = place.run(
            ran_kernels.norm_relu_conv, given[0].requires_grad_(), *running(given[0]), **options
        )
        assert y.requires_grad
        if not training:
            assert pair is None
            continue
        assert not any(t.requires_grad for t in pair)
        torch.testing.assert_close(list(pair), list(reference.batch_norm_statistics(y, None)[1:]))
        # A norm that is told them is the norm that finds them.
        for of in (ran_kernels.batch_norm, ran_kernels.batch_norm_relu):
            told, finds = (
                place.run(
                    gradients,
                    lambda t, s=s, of=of: [of(t, None, None, training=True, statistics=s)],
                    [y],
                )
                for s in (pair, None)
            )
            torch.testing.assert_close(told, finds)
        # And believes them.
        believed = place.run(
            ran_kernels.batch_norm, y, None, None, training=True, statistics=(pair[0] + 1, pair[1])
        )
        off = torch.rsqrt(pair[1] + EPS)[:, None, None]
        plain = F.batch_norm(y, None, None, training=True)
        torch.testing.assert_close(believed, plain - off)


@triton_only
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(place: Place, training: bool) -> None:
    given = inputs("two", False, torch.float64, place.device)
    given[0] = last(given[0][:, :, :3, :3])
    leaves = [t.requires_grad_() for t in given]
    call = node(ran_kernels.norm_relu_conv, "two", training=training)
    assert place.run(torch.autograd.gradcheck, call, leaves, fast_mode=True)


@triton_only
def test_without_a_norm(place: Place) -> None:
    """Also what two convolutions of one image, and the image's other use, add up to."""
    given = inputs("two", False, torch.float64, place.device)
    given = [given[0], *given[3:]]

    def of(fused: bool, measure: bool) -> Callable[..., Any]:
        def call(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            if not fused:
                return x.sin(), F.conv2d(x, a), F.conv2d(x, b, stride=2)
            again, found = ran_kernels.conv_statistics(
                x, convs=[Convolution(a), Convolution(b, None, 2)], measure=measure
            )
            for y, pair in found:
                assert (pair is not None) == measure
                if pair is not None:
                    want = reference.batch_norm_statistics(y.detach(), None)[1:]
                    torch.testing.assert_close(list(pair), list(want))
            return again.sin(), *(y for y, _ in found)

        return call

    want = gradients(of(False, False), given)
    for measure in (True, False):
        torch.testing.assert_close(place.run(gradients, of(True, measure), given), want)


@triton_only
def test_gradients_of_some_inputs_and_results_alone(place: Place) -> None:
    everything = inputs("two", False, torch.float64, place.device)
    asked: list[tuple[int | None, Any]] = [(i, range(3)) for i in range(len(everything))]
    asked += [(None, [i]) for i in range(3)]
    for wanted, used in asked:
        found = []
        for of in (ran_kernels.norm_relu_conv, composed):
            leaves = [
                t.detach().requires_grad_(wanted in (i, None)) for i, t in enumerate(everything)
            ]
            outs = place.run(node(of, "two", training=True), *leaves)
            total = sum(outs[i].sin().sum() for i in used if outs[i].requires_grad)
            assert isinstance(total, Tensor)
            needed = [t for t in leaves if t.requires_grad]
            found.append(place.run(torch.autograd.grad, total, needed, allow_unused=True))
        torch.testing.assert_close(*found)


@triton_only
def test_what_is_kept(place: Place) -> None:
    given = [t.requires_grad_() for t in inputs("two", False, torch.float32, place.device)]
    x, pairs = given[0], zip(given[3:], CONVS["two"], strict=True)
    convs = [Convolution(weight, None, stride) for weight, (_, stride) in pairs]
    norm = (None, None, *given[1:3])
    kept = kept_by(
        lambda: place.run(ran_kernels.norm_relu_conv, x, *norm, convs=convs, training=True)
    )
    sizes = sorted(t.numel() for t in kept)
    assert sizes == sorted([x.numel(), *(t.numel() for t in given[1:]), X[1], X[1]])


@triton_only
def test_special_values_reach_what_they_reach(place: Place) -> None:
    """As the operators one by one, on the CPU: cuDNN's convolutions may make NaN of 0."""
    values = (float("nan"), float("inf"), -float("inf"))
    for training in (True, False):
        for where in range(4):
            given = inputs("halved", True, torch.float64, place.device)
            for i, value in enumerate(values):
                part = given[where][0, i] if where == 0 else given[where][i]
                part.view(-1)[0] = value  # in a channel of its own
            call = node(ran_kernels.norm_relu_conv, "halved", training=training)
            found = [place.run(gradients, call, given)]
            call = node(one_by_one, "halved", training=training)
            with ran_kernels.backend("native"):
                found.append(gradients(call, [t.cpu() for t in given]))
            for a, b in zip(*([*outs, *grads] for outs, grads in found), strict=True):
                assert torch.equal(a.isfinite().cpu(), b.isfinite())


def one_by_one(x: Tensor, *channels: Any, convs: Any, addend: Any, statistics: Any, **options: Any):  # type: ignore[no-untyped-def]
    """`norm_relu_conv` of this library's norm and PyTorch's convolution."""
    outs = ran_kernels.batch_norm_relu_conv2d(x, *channels, convs=convs, **options)
    return x, [ran_kernels.Measured(outs[0] + addend, None)]


@triton_only
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16])
def test_autocast_as_the_operators_one_by_one(place: Place, of_x: torch.dtype) -> None:
    given = inputs("two", False, torch.float32, place.device)
    given[0] = given[0].to(of_x)
    found = []
    with torch.autocast(place.device, torch.bfloat16):
        for of in (ran_kernels.norm_relu_conv, composed):
            found.append(place.run(gradients, node(of, "two", training=True), given))
    for ours, theirs in zip(
        [*found[0][0], *found[0][1]], [*found[1][0], *found[1][1]], strict=True
    ):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=4e-2, atol=4e-2 * theirs.abs().max().item())


@triton_only
def test_compiled_in_one_graph(place: Place) -> None:
    torch._dynamo.reset()
    given = inputs("narrow", True, torch.float64, place.device)
    found = []
    for compiles in (True, False):
        statistics = running(given[0])
        call = node(ran_kernels.norm_relu_conv, "narrow", training=True, statistics=statistics)
        if compiles:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        outs, grads = place.run(gradients, call, given)
        found.append([*outs, *grads, *statistics])
    torch.testing.assert_close(*found)


@triton_only
@pytest.mark.parametrize("case", ["empty", "contiguous", "addend of another dtype", "exported"])
@pytest.mark.parametrize("gate", [None, True])
def test_pytorchs_way(place: Place, case: str, gate: bool | None) -> None:
    """What the kernels are not for is made of the other operators, with the same results."""
    given = inputs("narrow", True, torch.float64, place.device)
    if case == "empty":
        given[0], given[-1] = given[0][:0], given[-1][:0]
    elif case == "contiguous":
        given[0] = given[0].contiguous()
    elif case == "addend of another dtype":
        given[-1] = given[-1].float()
    call = node(ran_kernels.norm_relu_conv, "narrow", training=case != "empty", gate=gate)
    if case == "exported":

        class Head(torch.nn.Module):
            def forward(self, *tensors: Tensor) -> Any:
                of = ran_kernels.norm_relu_conv
                return node(of, "narrow", training=True, gate=gate)(*tensors)

        program = place.run(torch.export.export, Head(), tuple(given))
        torch.testing.assert_close(program.module()(*given), call(*given))
        return
    want = gradients(node(composed, "narrow", training=case != "empty", gate=gate), given)
    got = place.run(gradients, call, given)
    torch.testing.assert_close(got, want)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs("narrow", True, torch.float64, "cpu")
    call = node(ran_kernels.norm_relu_conv, "narrow", training=True)
    torch.testing.assert_close(
        gradients(call, given), gradients(node(composed, "narrow", training=True), given)
    )
    with (
        ran_kernels.backend("native"),
        pytest.raises(
            ran_kernels.BackendError,
            match=r"'native' cannot run norm_relu_conv: .* no native kernel",
        ),
    ):
        call(*given)


A = last(torch.zeros(2, 3, 4, 4))
W = torch.zeros(5, 3, 1, 1)
Y = torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": A[0]}, ValueError, r"x: expected \(N, C, H, W\), got shape \(3, 4, 4\)"),
        ({"convs": []}, ValueError, r"convs: expected at least one convolution, got none"),
        ({"convs": [Convolution(torch.zeros(5, 3, 3, 3))]}, ValueError,
         r"convs\[0\]: expected a 1×1 convolution .* got kernel \(3, 3\)"),
        ({"convs": [Convolution(W, None, (1, 2))]}, ValueError,
         r"convs\[0\]: expected a 1×1 .* got kernel \(1, 1\), stride \(1, 2\)"),
        ({"convs": [Convolution(W, torch.zeros(5))]}, ValueError,
         r"convs\[0\].bias: expected None, got \(5,\)"),
        ({"addend": A}, ValueError,
         r"addend: expected shape \(2, 5, 4, 4\) as the convolution's result, got \(2, 3, 4, 4\)"),
        ({"addend": A, "convs": [Convolution(W)] * 2}, ValueError,
         r"addend: expected one convolution beside it, got 2"),
        ({"addend": torch.zeros(2, 5, 4, 4, device="meta")}, ValueError,
         r"addend: expected device cpu as x, got meta"),
        ({"trunk": A}, ValueError,
         r"trunk: expected shape \(2, 5, 4, 4\) as the convolution's result, got \(2, 3, 4, 4\)"),
        ({"trunk": Y, "addend": Y}, ValueError,
         r"trunk: expected None beside addend, got \(2, 5, 4, 4\)"),
        ({"convs": Convolution(W)}, TypeError,
         r"convs: expected a list of Convolution, got Convolution"),
        ({"statistics": (torch.zeros(2), torch.zeros(3))}, ValueError,
         r"statistics\[0\]: expected shape \(3,\) \(C,\) of x, got \(2,\)"),
        ({"statistics": torch.zeros(3)}, TypeError,
         r"statistics: expected a pair of tensors, mean and variance, got Tensor"),
        ({"statistics": (torch.zeros(3), None)}, TypeError,
         r"statistics: expected a pair of tensors, .* got \(Tensor, NoneType\)"),
    ],
    ids=[
        *("dimensions", "none", "kernel", "strides", "bias", "addend", "two", "device"),
        *("trunk", "both", "one"),
        *("statistics", "no pair", "half"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"x": A, "convs": [Convolution(W)], "training": True, **options}
    x = given.pop("x")
    with pytest.raises(error, match=message):
        ran_kernels.norm_relu_conv(x, None, None, **given)


@triton_only
def test_checkpointed_and_differentiated_once(place: Place) -> None:
    given = inputs("two", False, torch.float64, place.device)
    call = node(ran_kernels.norm_relu_conv, "two", training=True)
    want = place.run(gradients, call, given)
    again = place.run(gradients, lambda *ts: checkpoint(call, *ts, use_reentrant=False), given)
    for ours, theirs in zip([*again[0], *again[1]], [*want[0], *want[1]], strict=True):
        assert torch.equal(ours, theirs)
    leaves = [t.requires_grad_() for t in given]
    outs = place.run(call, *leaves)[1:]
    for wanted in (leaves[0], leaves[3]):  # an image, a convolution's weight
        incoming = [torch.ones_like(t, requires_grad=True) for t in outs]
        (grad,) = torch.autograd.grad(outs, wanted, incoming, create_graph=True)
        with pytest.raises(RuntimeError, match=r"backend\('reference'\)"):
            torch.autograd.grad(grad.sum(), leaves[0])
