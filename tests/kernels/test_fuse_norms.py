"""``ran_kernels.fuse(model, norms=True)`` on other libraries' networks and on people's own."""

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

import ran_kernels
from ran_kernels.fuse import forwards

from .test_fuse import randomised, run


class Unit(nn.Module):
    """Pre-activation and post-activation, in functions, operators and modules."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.sum_first = False

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.conv1(self.bn1(x).relu())
        total = x + y
        return total if self.sum_first else self.tail(total, scale)

    def tail(self, total: Tensor, scale: float) -> Tensor:
        z = self.conv2(F.relu(self.norms[0](total)))
        z = self.norms[1](z)
        z += total * scale
        return torch.relu(z)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.unit = Unit(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.stem(x))


NET = {"stem": ["1+2"], "unit": ["bn1+relu", "sum+norms.0+relu", "norms.1+shortcut+relu"]}


def bottlenecks() -> nn.Module:
    return torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], 3, width_per_group=4
    )


def basic() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 3)


def dense() -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, drop_rate=0.2, num_classes=3)


def vgg() -> nn.Module:
    return torchvision.models.vgg.make_layers([4, "M", 6], batch_norm=True)


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **options)


SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
BASIC = ["bn1+relu", "bn2+shortcut+relu"]
BOTTLENECK = ["bn1+relu", "bn2+relu", "bn3+shortcut+relu"]
TIMMS = ["bn1+act1", "bn2+act2", "bn3+shortcut+act3"]
BLOCKS = [f"layer{i}.0" for i in (1, 2, 3, 4)]
RESNETV2 = {
    **{f"stages.{i}.blocks.0.norm{j}": ["norm+act"] for i in range(4) for j in (1, 2, 3)},
    "norm": ["norm+act"],
}
UNITS = ["s1.b1", "s2.b1", *(f"s3.b{i}" for i in range(1, 5)), *(f"s4.b{i}" for i in range(1, 8))]
REGNETX = {
    "stem.bn": ["norm+act"],
    # The last normalisation is in a part that ends in it.
    **{unit: ["conv3.bn+shortcut+act3"] for unit in UNITS},
    **{f"{unit}.conv{i}.bn": ["norm+act"] for unit in UNITS for i in (1, 2)},
}
#: A network, and what is fused in it.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, list[str]]]] = {
    "own": (Net, NET),
    "torchvision resnet18": (basic, {"": ["bn1+relu"], **dict.fromkeys(BLOCKS, BASIC)}),
    "torchvision resnet50": (
        bottlenecks,
        {"": ["bn1+relu"], **dict.fromkeys([*BLOCKS, "layer1.1"], BOTTLENECK)},
    ),
    "torchvision vgg": (vgg, {"": ["1+2", "5+6"]}),
    "timm resnet18": (
        of_timm("resnet18", **SMALL),
        {"": ["bn1+act1"], **{block: ["bn1+act1", "bn2+shortcut+act2"] for block in BLOCKS}},
    ),
    "timm resnet50d": (
        of_timm("resnet50d", **SMALL),
        {"": ["bn1+act1"], "conv1": ["1+2", "4+5"], **dict.fromkeys(BLOCKS, TIMMS)},
    ),
    "timm resnetv2": (of_timm("resnetv2_50", **SMALL), RESNETV2),
    "timm regnetx": (of_timm("regnetx_002"), REGNETX),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def fused_of(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    assert ran_kernels.fuse(copied, norms=True).norms
    return copied


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    randomised(model)
    return model


@contextmanager
def taken(model: nn.Module) -> Iterator[dict[str, list[bool]]]:
    """By name, whether each call of a fused module took the fused way."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, list[bool]] = {}
    chosen = forwards._chosen

    def watched(ways: Any, count: int, module: nn.Module, args: Any) -> Any:
        way = chosen(ways, count, module, args)
        found.setdefault(names[module], []).append(way is not None)
        return way

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwards, "_chosen", watched)
        yield found


X = torch.randn(2, 3, 10, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@each_network
def test_fused_equals_the_original(name: str) -> None:
    make, fused = NETWORKS[name]
    torch.manual_seed(0)
    original = randomised(make())
    other = copy.deepcopy(original)
    report = ran_kernels.fuse(other, norms=True)
    assert (report.norms, report.norms_left) == (fused, {})
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with taken(other) as ways:
        torch.testing.assert_close(run(other, x), run(original, x))
    assert ways == {name: [True, True] for name in fused}  # in training, and in evaluation


def test_a_list_of_features_is_followed_too() -> None:
    """torchvision's dense layers take a list of features or a tensor, and have dropout."""
    torch.manual_seed(0)
    original = randomised(dense()).eval()
    other = copy.deepcopy(original)
    report = ran_kernels.fuse(other, norms=True)
    layers = [f"features.denseblock{i}.denselayer{j}" for i in (1, 2) for j in (1, 2)]
    pairs = {layer: ["norm1+relu1", "norm2+relu2"] for layer in layers}
    assert report.norms == {
        "features": ["norm0+relu0"], "features.transition1": ["norm+relu"], **pairs
    }  # fmt: skip
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    with taken(other) as ways:
        torch.testing.assert_close(other(x), original(x))
    assert ways == {name: [True] for name in report.norms}
    layer, twin = (m.get_submodule(layers[0]).train() for m in (other, original))
    results = []
    for module in (layer, twin):
        torch.manual_seed(1)  # for dropout
        features = [torch.randn(2, 4, 5, 5, dtype=torch.float64) for _ in range(2)]
        with taken(layer) as ways:
            results.append([module(features), module(torch.cat(features, 1))])
        assert ways == ({"": [True, True]} if module is layer else {})
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["torchvision resnet50", "own"])
def test_float32_in_both_layouts(name: str) -> None:
    torch.manual_seed(0)
    original = randomised(NETWORKS[name][0]()).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        model = copy.deepcopy(original).to(memory_format=layout)
        x = torch.randn(2, 3, 40, 33).contiguous(memory_format=layout)
        exact = run(copy.deepcopy(model).double(), x.double())
        got, want = run(fused_of(model), x), run(model, x)
        for ours, theirs, right in zip(got, want, exact, strict=True):
            errors = [(t.double() - right.double()).norm() for t in (ours, theirs)]
            assert errors[0] <= 3 * errors[1] + 1e-6 * right.double().norm()


def test_the_model_stays_the_model_it_was() -> None:
    model = net()
    modules, state, form = list(model.modules()), model.state_dict(), repr(model)
    own = [dict(vars(module)) for module in modules]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[Any] = []
    model.unit.register_forward_hook(lambda *args: seen.append(args[1]))
    assert ran_kernels.fuse(model, norms=True).norms == NET
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert (list(model.state_dict()), repr(model)) == (list(state), form)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(
        model.state_dict().values(), state.values(), strict=True))  # fmt: skip
    hooked = [i for i, module in enumerate(modules) if module is model.unit]
    assert all(vars(m) == own[i] for i, m in enumerate(modules) if i not in hooked)
    assert isinstance(model.unit, Unit)
    assert (type(model.unit).__name__, type(model.unit).__module__) == ("Unit", __name__)
    before = model.unit.bn1.weight.clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.unit.bn1.weight)
    assert len(seen) == 1


def _sliced(model: Any) -> None:
    model.stem = model.stem[:2]


#: What people do to a network afterwards, and the modules that go their own way since.
CHANGES: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "nothing": (lambda model: None, set()),
    "synchronised": (lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(model), set()),
    "frozen": (lambda model: model.unit.bn1.eval().requires_grad_(False), set()),
    "another norm": (lambda model: setattr(model.unit, "bn1", nn.InstanceNorm2d(6)), {"unit"}),
    "another activation": (lambda model: model.stem.__setitem__(2, nn.SiLU()), {"stem"}),
    "a part more": (lambda model: model.stem.append(nn.Tanh()), {"stem"}),
    "a part less": (lambda model: model.stem.pop(2), {"stem"}),
    "a slice": (_sliced, {"stem"}),
    "a reversed list": (
        lambda model: setattr(model.unit, "norms", nn.ModuleList(model.unit.norms[::-1])), set(),
    ),
    "a parametrisation": (
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.unit.conv1), set(),
    ),
    "pruning": (
        lambda model: prune.l1_unstructured(model.unit.conv2, "weight", 3), set(),
    ),
    "an attribute": (lambda model: setattr(model.unit, "sum_first", True), {"unit"}),
    "another forward": (
        lambda model: setattr(model.unit, "forward", lambda x: model.unit.conv1(x)), set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_people_change_afterwards_counts(change: str) -> None:
    make, own = CHANGES[change]
    original = net()
    model = fused_of(original)
    torch.manual_seed(0)
    make(original)
    torch.manual_seed(0)
    make(model)
    for training in (True, False):
        outs = [m.train(training)(X) for m in (model, original)]
        torch.testing.assert_close(*outs)
    with taken(model) as ways:
        model(X)
    for name, took in ways.items():
        assert took == [name not in own], name
    torch.testing.assert_close(model.state_dict(), original.state_dict())


@pytest.mark.parametrize("part", ["stem", "stem.1", "stem.2", "unit.bn1", "unit.norms.0"])
def test_hooks_added_afterwards_are_called(part: str) -> None:
    original = net()
    model = fused_of(original)
    outs, seen = [], []
    for m in (model, original):
        module = m.get_submodule(part)
        module.register_forward_hook(lambda module, args, out: seen.append(out.detach().clone()))
        module.register_full_backward_hook(lambda module, grad, out: seen.append(*out))
        outs.append(run(m, X))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(seen[: len(seen) // 2], seen[len(seen) // 2 :])
    assert len(seen) == 8  # two passes of each, forward and backward
    with torch.nn.modules.module.register_module_forward_hook(lambda *args: seen.append(None)):
        model(X)
    assert len(seen) == 8 + 1 + len(list(model.modules())) - 1  # a list of modules is not called


def test_hooks_of_a_part_that_was_followed_too_are_called() -> None:
    torch.manual_seed(0)
    unit = randomised(of_timm("regnetx_002")().get_submodule("s1.b1")).train()
    other = fused_of(unit)
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    for hooked in ("", "conv3", "conv3.bn", "conv3.bn.act", "drop_path"):
        seen: list[Any] = []
        part = other.get_submodule(hooked)
        hook = part.register_forward_hook(lambda *args, seen=seen: seen.append(args))
        with taken(other) as ways:
            got = other(x)
        torch.testing.assert_close(got, unit(x))
        assert len(seen) == 1
        assert ways[""] == [hooked == ""], hooked
        hook.remove()
    # A mode of that part alone, too.
    for module in (unit, other):
        module.get_submodule("conv3.bn").eval()
    with taken(other) as ways:
        got = other(x)
    torch.testing.assert_close(got, unit(x))
    assert ways[""] == [False]


@pytest.mark.parametrize("save", ["deepcopy", "pickle", "torch.save", "copy"])
def test_deep_copies_are_fused_too_and_pickles_are_plain(save: str) -> None:
    model = fused_of(net())
    stream = io.BytesIO()
    if save == "deepcopy":
        other = copy.deepcopy(model)
    elif save == "copy":
        other = nn.Sequential(OrderedDict((k, copy.copy(v)) for k, v in model.named_children()))
    else:
        (pickle.dump if save == "pickle" else torch.save)(model, stream)
        assert b"ran_kernels" not in stream.getvalue()  # it loads where that is not
        stream.seek(0)
        other = torch.load(stream, weights_only=False) if save != "pickle" else pickle.load(stream)
    ours, theirs = other.get_submodule("unit"), model.get_submodule("unit")
    assert isinstance(theirs, Unit)
    assert ours is not theirs
    assert type(ours) is (type(theirs) if save == "deepcopy" else Unit)
    assert (ours.conv1.weight is theirs.conv1.weight) == (save == "copy")
    with taken(other) as ways:
        got = other(X)
    torch.testing.assert_close(got, model(X))
    assert ways == ({name: [True] for name in NET} if save == "deepcopy" else {})
    assert ran_kernels.fuse(other, norms=True).norms == ({} if save == "deepcopy" else NET)


def test_there_and_back() -> None:
    original = net()
    model = fused_of(original)
    classes = [type(module) for module in model.modules()]
    again = ran_kernels.fuse(model, norms=True)
    assert (again.norms, again.norms_left) == ({}, {})
    assert [type(module) for module in model.modules()] == classes
    assert ran_kernels.unfuse(model) == list(NET)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    with taken(model) as ways:
        torch.testing.assert_close(model(X), original(X))
    assert not ways
    assert ran_kernels.unfuse(model) == []
    with pytest.raises(TypeError, match="model: expected a module, got str"):
        ran_kernels.unfuse("resnet")  # type: ignore[arg-type]
    # Modules that are alike have one class between them, so that torch.compile traces it once.
    twins = nn.Sequential(net().unit, net().unit)
    ran_kernels.fuse(twins, norms=True)
    assert type(twins[0]) is type(twins[1])


def test_by_default_no_norm_is_fused() -> None:
    model = net()
    report = ran_kernels.fuse(model)
    assert report == ran_kernels.FuseReport()
    assert str(report) == "0 CBAM modules replaced, 0 left"
    assert type(model.unit) is Unit


def test_with_attention_and_in_words() -> None:
    torch.manual_seed(0)
    cbam: dict[str, Any] = {"block_args": {"attn_layer": "cbam"}}
    original = randomised(timm.create_model("resnet18", num_classes=3, **SMALL, **cbam))
    model = copy.deepcopy(original)
    report = ran_kernels.fuse(model, norms=True)
    assert len(report.replaced) == 4
    assert str(report).splitlines() == [
        "4 CBAM modules replaced, 0 left",
        *(f"  replaced layer{i}.0.se" for i in (1, 2, 3, 4)),
        "5 normalisations fused in 5 modules, 0 modules left",
        *(f"  fused {name}: bn1+act1" for name in ("(the model)", *BLOCKS)),
    ]
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with taken(model) as ways:
        torch.testing.assert_close(run(model, x)[0], run(original, x)[0])
    assert ways == {name: [True, True] for name in ("", *BLOCKS)}


def test_traced_exported_and_compiled() -> None:
    original = net()
    model = fused_of(original)
    want = run(original, X)
    torch._dynamo.reset()
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, X), want)
    model.load_state_dict(original.state_dict())
    torch.testing.assert_close(model.eval()(X), want[len(want) // 2])
    exported = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(exported(X), want[len(want) // 2])
    traced = torch.fx.symbolic_trace(model)
    assert {"stem.1", "unit.norms.1", "stem.2"} <= {
        node.target for node in traced.graph.nodes if node.op == "call_module"
    }
    torch.testing.assert_close(traced(X), want[len(want) // 2])
    scripted = torch.jit.trace(model, X)
    assert "ran" not in str(scripted.inlined_graph).split("::")
    torch.testing.assert_close(scripted(X), want[len(want) // 2])


def test_a_compiled_network_sees_what_changed() -> None:
    model: Any = fused_of(net()).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X)
    model.stem[2] = nn.SiLU()
    model.unit.sum_first = True
    torch.testing.assert_close(compiled(X), model(X))


def test_checkpointed_and_averaged() -> None:
    original = net()
    model = fused_of(original)
    again = lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)  # noqa: E731
    x, y = (X.clone().requires_grad_() for _ in range(2))
    again(x).sum().backward()
    original(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    with taken(average) as ways:
        got = average.eval()(X)
    torch.testing.assert_close(got, model.eval()(X))
    assert ways == {"module.stem": [True], "module.unit": [True]}
