"""The helpers that read a BatchNorm2d, against the layer itself and PyTorch's ReLU."""

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ran_kernels.nn import add_norm_relu, norm_add_relu, norm_relu, norm_relu_conv

from .cbam_cases import features
from .harness import Place, kernels
from .operators import listed

SHAPE = (4, 6, 5, 7)


def _plain_sum(norm: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a + b, F.relu(norm(a + b))


#: Each helper, and what it stands for.
HELPERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "norm_relu": (norm_relu, lambda norm, x: F.relu(norm(x)), 1),
    "add_norm_relu": (add_norm_relu, _plain_sum, 2),
    "norm_add_relu": (norm_add_relu, lambda norm, x, s: F.relu(norm(x) + s), 2),
}
each_helper = pytest.mark.parametrize("name", HELPERS)


def _module(**options: Any) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(SHAPE[1], **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def _results(op: Callable[..., Any], norm: nn.Module, count: int, steps: int = 3) -> list[Tensor]:
    """Outputs, gradients and state of `steps` calls."""
    found: list[Tensor] = []
    for step in range(steps):
        images = [features(SHAPE, seed=2 * step + i).requires_grad_() for i in range(count)]
        outs = listed(op(norm, *images))
        wanted = [*images, *(p for p in norm.parameters() if p.requires_grad)]
        found += [*outs, *torch.autograd.grad([t.sin().sum() for t in outs], wanted)]
    return [*found, *norm.state_dict().values()]


MODES: dict[str, Callable[[nn.BatchNorm2d], Any]] = {
    "training": lambda norm: norm.train(),
    "evaluation": lambda norm: norm.eval(),
    "frozen": lambda norm: norm.eval().requires_grad_(False),
    "untracked": lambda norm: setattr(norm, "track_running_stats", False),
    "untracked-evaluation": lambda norm: setattr(norm.eval(), "track_running_stats", False),
}


@each_helper
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.3, "eps": 1e-3},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_as_the_layer(name: str, mode: str, options: dict[str, Any]) -> None:
    """On this machine's own backend: no other one is given anything else."""
    ours, plain, count = HELPERS[name]
    norm = _module(**options)
    _results(plain, norm, count, 1)  # statistics to evaluate with
    MODES[mode](norm)
    other = copy.deepcopy(norm)
    got, want = _results(ours, norm, count), _results(plain, other, count)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)


@kernels
@pytest.mark.parametrize("second", ["ours", "the layer"])
@pytest.mark.parametrize(
    ("first", "training"), [("ours", True), ("ours", False), ("the layer", True)]
)
@pytest.mark.parametrize("name", [*HELPERS, "norm_relu_conv"])
def test_one_layer_twice_in_a_step(
    place: Place, name: str, first: str, training: bool, second: str
) -> None:
    """What comes second, in training, changes running statistics and no gradient of the first.

    A layer in evaluation is left out: PyTorch's own takes the changed ones for its backward.
    """
    ours, plain, count = HELPERS.get(name, (None, None, 1))
    conv = nn.Conv2d(SHAPE[1], 3, 1).to(place.device)
    ways = {"ours": ours, "the layer": plain} if ours and plain else {
        "ours": lambda norm, x: norm_relu_conv(norm, x, conv, recompute=True),
        "the layer": lambda norm, x: conv(F.relu(norm(x))),
    }  # fmt: skip

    def gradients(again: bool) -> Sequence[Tensor]:
        norm = _module().to(place.device).train(training)
        xs = [features(SHAPE, seed=i, device=place.device).requires_grad_() for i in range(count)]
        outs = listed(ways[first](norm, *xs))
        if again:
            before = norm.get_buffer("running_mean").clone()
            ways[second](norm.train(), *(x.detach() * 2 + 1 for x in xs))
            assert not torch.equal(before, norm.get_buffer("running_mean"))
        return torch.autograd.grad([t.sin().sum() for t in outs], [*xs, *norm.parameters()])

    got, want = (place.run(gradients, again) for again in (True, False))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@kernels
@each_helper
def test_the_operator_runs_where_the_layer_is_plain(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the layer itself where something would be passed over."""
    ours, _, count = HELPERS[name]
    given = [features(SHAPE, seed=i) for i in range(count)]
    calls: list[Any] = []
    forward = nn.BatchNorm2d.forward

    def counted(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, x)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", counted)
    place.run(ours, _module(), *given)
    assert not calls

    class Clipped(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(max=0.5)

    hooked, exchanged = _module(), _module()
    hooked.register_forward_hook(lambda *args: None)
    exchanged.__dict__["forward"] = lambda x: counted(exchanged, x)
    for norm in (Clipped(SHAPE[1]), hooked, exchanged, _module(momentum=None)):
        calls.clear()
        out = listed(place.run(ours, norm, *given))[-1]
        assert len(calls) == 1
    assert isinstance(place.run(ours, nn.Identity(), *given), (Tensor, tuple))
    assert out.min() == 0


@kernels
@pytest.mark.parametrize("name", ["add_norm_relu", "norm_add_relu"])
def test_a_term_of_the_sum_may_be_spread(place: Place, name: str) -> None:
    """As PyTorch's addition does; the operator is for terms of one shape."""
    ours, plain, _ = HELPERS[name]
    x, gate = features(SHAPE), features((*SHAPE[:2], 1, 1), seed=1)
    got, want = place.run(ours, _module(), x, gate), plain(_module(), x, gate)
    torch.testing.assert_close(listed(got), listed(want), rtol=0, atol=0)


@kernels
@each_helper
def test_compiled_in_one_graph_and_trained(place: Place, name: str) -> None:
    ours, plain, count = HELPERS[name]
    torch._dynamo.reset()
    norm = _module()
    other = copy.deepcopy(norm)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got = place.run(_results, compiled, norm, count)
    torch.testing.assert_close(got, _results(plain, other, count), rtol=1e-5, atol=2e-5)


@kernels
@each_helper
def test_one_value_per_channel_is_refused_as_the_layer_does(place: Place, name: str) -> None:
    ours, _, count = HELPERS[name]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        place.run(ours, _module(), *[features((1, SHAPE[1], 1, 1))] * count)


@each_helper
def test_hooks_of_the_layer_keep_what_it_gave(name: str) -> None:
    ours, plain, count = HELPERS[name]
    kept: list[Tensor] = []
    found = []
    for op in (ours, plain):
        norm = _module()
        norm.register_forward_hook(lambda module, args, out: kept.append(out))
        norm.register_full_backward_hook(lambda module, grad, out: kept.extend(out))
        found.append(_results(op, norm, count, 1))
    torch.testing.assert_close(*found)
    assert len(kept) == 4
    torch.testing.assert_close(kept[:2], kept[2:])


def test_torch_fx_sees_the_layer() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = _module()

        def forward(self, x: Tensor) -> Tensor:
            return norm_relu(self.norm, x)

    traced = torch.fx.symbolic_trace(Network())
    assert "norm" in [node.target for node in traced.graph.nodes if node.op == "call_module"]


@kernels
@each_helper
@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_saved_and_loaded(place: Place, name: str) -> None:
    ours, plain, count = HELPERS[name]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = _module()

        def forward(self, *images: Tensor) -> Any:
            return ours(self.norm, *images)

    network = Network().eval()
    given = tuple(features(SHAPE, seed=i) for i in range(count))
    traced = place.run(torch.jit.trace, network, given)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    others = [features((2, SHAPE[1], 3, 4), seed=i) for i in range(count)]
    got, want = torch.jit.load(file)(*others), plain(network.norm, *others)
    torch.testing.assert_close(listed(got), listed(want))
