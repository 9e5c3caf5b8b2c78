"""Normalise, clip and convolve as one node, against plain PyTorch and the operators one by one."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ran_kernels
from ran_kernels import Convolution, reference
from ran_kernels.nn import add_norm_relu_conv, norm_relu_conv

from ..watching import Calls, kept_by
from .cbam_cases import NATIVE_LAYOUTS, features
from .harness import DTYPES, LAYOUTS, Place, check_against_reference, kernels, outputs_and_grads
from .norm_cases import CONVOLVED, affine, called, convolutions, images, running

SHAPE = (2, 6, 5, 7)
#: Out channels, kernel, bias, and the other arguments, of the convolutions of one activation.
FORMS: dict[str, list[tuple[Any, ...]]] = {
    "1x1": [(4, 1, False, 1, 0)],
    "3x3/2": [(4, 3, True, 2, 1)],
    "groups": [(9, 3, False, 1, (2, 1), (2, 1), 3)],
    "two": [(5, 1, True, 2, 0), (4, 3, False, 1, 1)],
}
each_function = pytest.mark.parametrize("name", CONVOLVED)
each_form = pytest.mark.parametrize("form", FORMS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def _inputs(name: str, form: str, *of: Any, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """Images, weight and bias of the norm, weights and biases of the convolutions."""
    given = images(name, shape, *of)
    return [*given, *affine(given[0]), *convolutions(given[0], FORMS[form])]


def _op(module: Any, name: str, form: str, **options: Any) -> Callable[..., Any]:
    return called(module, name, forms=FORMS[form], **options)


class _OneByOne:
    """The functions under test, made of the operators and PyTorch's convolution."""

    @staticmethod
    def batch_norm_relu_conv2d(
        *arguments: Any, convs: Sequence[Convolution], **options: Any
    ) -> tuple[Tensor, ...]:
        activation = ran_kernels.batch_norm_relu(*arguments, **options)
        return tuple(F.conv2d(activation, *conv) for conv in convs)

    @staticmethod
    def add_batch_norm_relu_conv2d(
        *arguments: Any, convs: Sequence[Convolution], **options: Any
    ) -> tuple[Tensor, ...]:
        total, activation = ran_kernels.add_batch_norm_relu(*arguments, **options)
        return total, *(F.conv2d(activation, *conv) for conv in convs)


@kernels
@each_function
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactness(place: Place, name: str, form: str, dtype: torch.dtype) -> None:
    training = form != "3x3/2"
    turn = (CONVOLVED[name], list(FORMS).index(form), DTYPES.index(dtype))
    for layout in place.share(NATIVE_LAYOUTS, *turn):
        check_against_reference(
            place,
            _op(ran_kernels, name, form, training=training),
            _op(reference, name, form, training=training),
            _inputs(name, form, dtype, place.device, layout),
        )


@kernels
@each_function
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place: Place, name: str, layout: str) -> None:
    given = _inputs(name, "two", torch.float32, place.device)
    want = outputs_and_grads(_op(reference, name, "two", training=True), given)
    given = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in given]
    got = place.run(outputs_and_grads, _op(ran_kernels, name, "two", training=True), given)
    torch.testing.assert_close(got, want)


@kernels
@each_function
@each_mode
def test_gradcheck(place: Place, name: str, training: bool) -> None:
    given = _inputs(name, "two", torch.float64, place.device, shape=(2, 2, 3, 3))
    op = _op(ran_kernels, name, "two", training=training)
    leaves = [t.requires_grad_() for t in given]
    assert place.run(torch.autograd.gradcheck, op, leaves, fast_mode=True)


#: Dtypes of images and of parameters, and autocast's.
PRECISIONS = {
    "float32": (torch.float32, torch.float32, None),
    "autocast": (torch.float32, torch.float32, torch.bfloat16),
    "autocast-bfloat16": (torch.bfloat16, torch.float32, torch.bfloat16),
    "autocast-float16": (torch.float16, torch.float32, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
}


@kernels
@each_function
@each_mode
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bits_of_the_operators_one_by_one(
    place: Place, name: str, training: bool, precision: str
) -> None:
    """Outputs, gradients and statistics: the activation computed again is the activation."""
    of_images, of_parameters, autocast = PRECISIONS[precision]
    count = CONVOLVED[name]
    for form in place.share(("3x3/2", "two"), count, training, list(PRECISIONS).index(precision)):
        found = []
        for module in (ran_kernels, _OneByOne):
            given = _inputs(name, form, of_images, place.device, "channels_last")
            given[count:] = [t.to(of_parameters) for t in given[count:]]
            leaves = [t.detach().requires_grad_() for t in given]
            statistics = running(given[0].to(of_parameters))
            with torch.autocast(place.device, autocast, enabled=autocast is not None):
                op = _op(module, name, form, training=training, statistics=statistics)
                outs = place.run(op, *leaves)
            total = sum(t.double().sin().sum() for t in outs)
            grads = place.run(torch.autograd.grad, total, leaves)
            assert [t.dtype for t in grads] == [t.dtype for t in leaves]
            found.append([*outs, *grads, *statistics])
        for ours, theirs in zip(*found, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.stride() == theirs.stride()
            assert torch.equal(ours, theirs)


@kernels
@each_function
def test_gradients_of_some_inputs_and_results_alone(place: Place, name: str) -> None:
    everything = _inputs(name, "two", torch.float32, place.device)
    results = len(_op(reference, name, "two", training=True)(*everything))
    asked: list[tuple[int | None, Sequence[int]]]
    asked = [(i, range(results)) for i in range(len(everything))]
    asked += [(None, [i]) for i in range(results)]
    for training in (True, False):
        for wanted, used in place.share(asked, CONVOLVED[name], training):
            found = []
            for module in (ran_kernels, reference):
                leaves = [
                    t.detach().requires_grad_(wanted in (i, None)) for i, t in enumerate(everything)
                ]
                outs = place.run(_op(module, name, "two", training=training), *leaves)
                assert all(t.grad_fn is not None for t in outs[-2:]) or module is reference
                total = sum(outs[i].sin().sum() for i in used if outs[i].requires_grad)
                assert isinstance(total, Tensor)
                needed = [t for t in leaves if t.requires_grad]
                found.append(place.run(torch.autograd.grad, total, needed, allow_unused=True))
            torch.testing.assert_close(*found)


@kernels
@each_function
def test_the_activation_is_computed_again_for_weights_alone(place: Place, name: str) -> None:
    count = CONVOLVED[name]
    for frozen in (False, True):
        given = _inputs(name, "two", torch.float32, place.device)
        leaves = [t.requires_grad_(i < count + 2 or not frozen) for i, t in enumerate(given)]
        outs = place.run(_op(ran_kernels, name, "two", training=True), *leaves)
        needed = [t for t in leaves if t.requires_grad]
        with Calls() as calls:
            place.run(torch.autograd.grad, sum(t.sin().sum() for t in outs), needed)
        assert calls.counts["ran::batch_norm_apply"] == (0 if frozen else 1)
        assert calls.counts["ran::batch_norm_grad"] == 1


def _require_one_image_kept(name: str, leaves: list[Tensor], run: Callable[..., Any]) -> None:
    kept = kept_by(lambda: run(*leaves))
    image = leaves[0].numel()
    assert sum(t.numel() == image for t in kept) == 1
    parameters = sum(t.numel() for t in leaves[CONVOLVED[name] :])
    assert sum(t.numel() for t in kept) <= image + parameters + 4 * SHAPE[1]


@kernels
@each_function
def test_what_is_kept(place: Place, name: str) -> None:
    given = _inputs(name, "two", torch.float32, place.device, shape=(2, 6, 32, 32))
    op = _op(ran_kernels, name, "two", training=True)
    leaves = [t.requires_grad_() for t in given]
    _require_one_image_kept(name, leaves, lambda *ts: place.run(op, *ts))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_what_is_kept_compiled(compiler: str) -> None:
    """Where two equal calls would be made one, and their result kept."""
    torch._dynamo.reset()
    name = "add_batch_norm_relu_conv2d"
    leaves = [t.requires_grad_() for t in _inputs(name, "two", shape=(2, 6, 32, 32))]
    op = _op(ran_kernels, name, "two", training=True)
    with ran_kernels.backend("native"):
        _require_one_image_kept(name, leaves, torch.compile(op, fullgraph=True, backend=compiler))


@kernels
@each_function
def test_checkpointed(place: Place, name: str) -> None:
    given = _inputs(name, "two", torch.float32, place.device)
    op = _op(ran_kernels, name, "two", training=True)
    want = place.run(outputs_and_grads, op, given)
    again = place.run(
        outputs_and_grads, lambda *ts: checkpoint(op, *ts, use_reentrant=False), given
    )
    for ours, theirs in zip([*again[0], *again[1]], [*want[0], *want[1]], strict=True):
        assert torch.equal(ours, theirs)


@kernels
@each_function
@each_mode
def test_differentiated_once(place: Place, name: str, training: bool) -> None:
    leaves = [t.requires_grad_() for t in _inputs(name, "two", torch.float32, place.device)]
    outs = place.run(_op(ran_kernels, name, "two", training=training), *leaves)
    for wanted in (leaves[0], leaves[-2]):  # an image, a convolution's weight
        incoming = [torch.ones_like(t, requires_grad=True) for t in outs]
        (grad,) = torch.autograd.grad(outs, wanted, incoming, create_graph=True)
        with pytest.raises(RuntimeError, match=r"backend\('reference'\)"):
            torch.autograd.grad(grad.sum(), leaves[0])


@kernels
@each_function
@each_mode
def test_an_empty_batch(place: Place, name: str, training: bool) -> None:
    given = _inputs(name, "1x1", torch.float32, place.device, shape=(0, 6, 4, 4))
    leaves = [t.requires_grad_() for t in given]
    outs = place.run(_op(ran_kernels, name, "1x1", training=training), *leaves)
    assert outs[-1].shape == (0, 4, 4, 4)
    grads = torch.autograd.grad(sum(t.sum() for t in outs), leaves, allow_unused=True)
    assert all(t is None or not t.any() for t in grads)


A = torch.zeros(2, 6, 4, 4)
C = torch.ones(6)
W = torch.zeros(4, 6, 3, 3)


@pytest.mark.parametrize(
    ("convs", "error", "message"),
    [
        ([], ValueError, r"convs: expected at least one convolution, got none"),
        (Convolution(W), TypeError, r"convs: expected a list of Convolution, got Convolution"),
        ([W], TypeError, r"convs\[0\]: expected a Convolution, got Tensor"),
        ([Convolution(W, None, groups=2)], ValueError,
         r"convs\[0\].weight: expected \(O, 6 / groups, kH, kW\) for the channels of a"),
        ([Convolution(W[:3, :3], None, groups=2)], ValueError, r"convs\[0\].weight: expected"),
        ([Convolution(W, groups=0)], ValueError, r"convs\[0\].groups: expected a positive"),
        ([Convolution(W), Convolution(W[0])], ValueError, r"convs\[1\].weight: expected \(N, C"),
        ([Convolution(W, C)], ValueError, r"convs\[0\].bias: expected shape \(4,\) \(O,\) of"),
        ([Convolution(W, C[:4].to("meta"))], ValueError, r"convs\[0\].bias: expected device cpu"),
        ([Convolution(W.half())], ValueError,
         r"convs\[0\].weight: expected torch.float32 as a, got torch.float16"),
        ([Convolution(W, None, 0)], ValueError, r"convs\[0\].stride: expected at least 1, got 0"),
        ([Convolution(W, None, 1, (0, -1))], ValueError, r"convs\[0\].padding: expected at least"),
        ([Convolution(W, None, 1, "same")], TypeError,  # type: ignore[arg-type]
         r"convs\[0\].padding: expected an integer or a pair of them, got 'same'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_convolutions_are_named(
    backend: str, convs: Any, error: type[Exception], message: str
) -> None:
    """Before anything is computed: the running statistics stay."""
    mean, var = torch.zeros(6), torch.ones(6)
    with ran_kernels.backend(backend), pytest.raises(error, match=f"^{message}"):
        ran_kernels.add_batch_norm_relu_conv2d(A + 1, A, mean, var, convs=convs, training=True)
    assert not mean.any()


# The helpers with modules.


def _plain(norm: nn.Module, x: Tensor, *convs: nn.Module) -> tuple[Tensor, ...]:
    activation = F.relu(norm(x))
    return tuple(conv(activation) for conv in convs)


def _plain_sum(norm: nn.Module, a: Tensor, b: Tensor, *convs: nn.Module) -> tuple[Tensor, ...]:
    return a + b, *_plain(norm, a + b, *convs)


HELPERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "norm_relu_conv": (norm_relu_conv, _plain, 1),
    "add_norm_relu_conv": (add_norm_relu_conv, _plain_sum, 2),
}
each_helper = pytest.mark.parametrize("name", HELPERS)


class _Unit(nn.Module):
    """A normalisation and two convolutions, called by a helper or plainly."""

    def __init__(self, name: str, recompute: bool | None = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.helper, self.plain, self.count = HELPERS[name]
        self.recompute = recompute
        self.norm = nn.BatchNorm2d(SHAPE[1])
        self.conv = nn.Conv2d(SHAPE[1], 4, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(SHAPE[1], 5, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        given = (x, x.flip(0))[: self.count]
        convs = (self.conv, self.shortcut)
        if self.recompute is None:
            return self.plain(self.norm, *given, *convs)
        return self.helper(self.norm, *given, *convs, recompute=self.recompute)


def _trained(unit: nn.Module, call: Callable[..., Any], steps: int = 3) -> list[Tensor]:
    """Outputs and gradients of `steps` steps of gradient descent, and the state after them."""
    found: list[Tensor] = []
    wanted = [p for p in unit.parameters() if p.requires_grad]
    for step in range(steps):
        x = features(SHAPE, seed=step).requires_grad_()
        outs = call(x)
        grads = torch.autograd.grad(sum(t.sin().sum() for t in outs), [x, *wanted])
        found += [*outs, *grads]
        with torch.no_grad():
            for p, grad in zip(wanted, grads[1:], strict=True):
                p.sub_(0.01 * grad)
    return [*found, *unit.state_dict().values()]


MODES: dict[str, Callable[[_Unit], Any]] = {
    "training": lambda unit: unit,
    "evaluation": lambda unit: unit.eval(),
    "frozen-norm": lambda unit: unit.norm.eval().requires_grad_(False),
    "frozen-convolution": lambda unit: unit.conv.requires_grad_(False),
}


@kernels
@each_helper
@pytest.mark.parametrize("mode", MODES)
def test_as_the_layers(place: Place, name: str, mode: str) -> None:
    found = []
    for recompute in (True, False, None):
        unit = _Unit(name, recompute)
        MODES[mode](unit)
        found.append(place.run(_trained, unit, unit))
    torch.testing.assert_close(found[0], found[2], rtol=5e-5, atol=5e-5)
    assert all(map(torch.equal, found[0], found[1]))


@kernels
@each_helper
def test_compiled_in_one_graph_and_trained(place: Place, name: str) -> None:
    torch._dynamo.reset()
    unit, plain = _Unit(name), _Unit(name, None)
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    got = place.run(_trained, unit, compiled)
    torch.testing.assert_close(got, _trained(plain, plain), rtol=5e-5, atol=5e-5)


@kernels
@each_helper
def test_the_node_runs_where_every_layer_is_plain(place: Place, name: str) -> None:
    """And the layers themselves where something would be passed over."""

    def calls(unit: _Unit) -> int:
        seen: list[str] = []
        outs = place.run(unit, features(SHAPE).requires_grad_())
        graph = [t.grad_fn for t in outs]
        return sum("BatchNormConv" in str(node) for node in graph) - len(seen)

    results = HELPERS[name][2] + 1
    assert calls(_Unit(name)) == results
    assert calls(_Unit(name, False)) == 0
    for part in ("norm", "conv", "shortcut"):
        unit = _Unit(name)
        heard: list[Any] = []
        getattr(unit, part).register_forward_hook(lambda *args, heard=heard: heard.append(1))
        assert calls(unit) == 0
        assert heard == [1]
    changes: list[Callable[[_Unit], Any]] = [
        lambda unit: setattr(unit, "conv", nn.Conv2d(6, 4, 3, padding_mode="reflect", padding=1)),
        lambda unit: setattr(unit, "conv", nn.Conv2d(6, 4, 3, padding="same")),
        lambda unit: setattr(unit, "conv", nn.Sequential(unit.conv)),
        lambda unit: setattr(unit, "norm", nn.Sequential(unit.norm)),
        lambda unit: unit.conv.__dict__.update(forward=unit.shortcut.forward),
    ]
    x = features(SHAPE)
    for change in changes:
        unit = _Unit(name)
        change(unit)
        plain = copy.deepcopy(unit)
        plain.recompute = None
        assert calls(unit) == 0
        torch.testing.assert_close(place.run(unit, x), plain(x))


@each_helper
def test_traced_and_transformed_plainly(name: str) -> None:
    """By torch.fx, torch.export and torch.func, which look into the layers."""
    unit, x = _Unit(name).eval(), features(SHAPE)
    traced = torch.fx.symbolic_trace(unit)
    modules = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert modules == {"norm", "conv", "shortcut"}
    exported = torch.export.export(unit, (x,))
    assert not any("ran." in str(node.target) for node in exported.graph.nodes)
    want = _Unit(name, None).eval()(x)
    for results in (traced(x), exported.module()(x), torch.vmap(unit)(x[None])):
        for ours, theirs in zip(results, want, strict=True):
            torch.testing.assert_close(ours.reshape(theirs.shape), theirs)
