"""What people do with a network that ``ran_kernels.fuse(model, norms=True)`` fused."""

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ran_kernels

from .fuse_norm_cases import NET, NETWORKS, Unit, X, fused_of, net, of_timm, taken
from .test_fuse import randomised, run


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
    assert (type(model.unit).__name__, type(model.unit).__module__) == ("Unit", Unit.__module__)
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
    # Another forward and a mode of that part alone, too.
    kind: Any = type(unit.get_submodule("conv3"))
    doubled = type("Doubled", (kind,), {"forward": lambda self, x: kind.forward(self, x) * 2})
    for module in (unit, other):
        module.get_submodule("conv3").__class__ = doubled
    torch.testing.assert_close(other(x), unit(x))
    for module in (unit, other):
        module.get_submodule("conv3").__class__ = kind
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


@pytest.mark.parametrize("name", ["tail", "forward"])
def test_methods_exchanged_afterwards_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = fused_of(net())
    monkeypatch.setattr(Unit, name, lambda self, x, *more: x * 3)
    with taken(model) as ways:
        got = model.unit(x := torch.randn(2, 6, 5, 5, dtype=torch.float64))
    assert ways == {"unit": [False]}
    want = x + model.unit.conv1(model.unit.bn1(x).relu()) if name == "tail" else x
    torch.testing.assert_close(got, 3 * want)


def _gradients(model: nn.Module, *outs: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad([out.sin().sum() for out in outs], [*model.parameters()])
    return [*outs, *grads, *model.buffers()]


def _between_hooks(model: Any) -> list[Tensor]:
    first = model(X)
    hook = model.unit.bn1.register_forward_hook(lambda *args: None)
    second = model(X)
    hook.remove()
    return _gradients(model, first, second, model(X))


def _both_modes(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        first = model.eval()(X)
    return [first, *_gradients(model, model.train()(X))]


def _other_dtype(model: nn.Module) -> list[Tensor]:
    model.float()(X.float())
    count = 1 + len(list(model.double().parameters()))
    return _gradients(model, model(X))[:count]  # the statistics are of float32 as well


def _autocast(model: nn.Module) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [torch.tensor(model.float()(X.float()).dtype == torch.float32)]


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    given = {name: p * 2 for name, p in model.named_parameters()}
    call = torch.func.functional_call
    return torch.func.grad(lambda given: call(model.eval(), given, (X,)).sum())(given)


def _parallel(model: nn.Module) -> list[Tensor]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(),
                                         rank=0, world_size=1)  # fmt: skip
    try:
        return _gradients(model, nn.parallel.DistributedDataParallel(model)(X))
    finally:
        torch.distributed.destroy_process_group()


#: What a step may be, by name.
STEPS: dict[str, Callable[[nn.Module], Any]] = {
    "two calls": lambda model: _gradients(model, model(X), model(2 * X)),
    "hooks meanwhile": _between_hooks,
    "both modes": _both_modes,
    "frozen norm": lambda model: _gradients(
        model, (model.get_submodule("unit.bn1").eval(), model(X))[1]
    ),
    "other dtype": _other_dtype,
    "autocast": _autocast,
    "vmap": lambda model: torch.vmap(lambda x: model.eval()(x[None]))(X),
    "jvp": lambda model: torch.func.jvp(model.eval(), (X,), (X,)),
    "functional_call": _parameters,
    "inference mode": lambda model: [
        torch.inference_mode()(model)(X).clone(),
        *_gradients(model, model(X)),
    ],
    "meta": lambda model: model.to("meta")(X.to("meta")).stride(),
    "empty": lambda model: model.eval()(X[:0]),
    "DDP": _parallel,
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_the_original(name: str) -> None:
    original = net()
    model = fused_of(original)
    torch.testing.assert_close(STEPS[name](model), STEPS[name](original))


def test_scripted_and_differentiated_twice() -> None:
    model = fused_of(net())
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"use ran_kernels.backend\('reference'\)"):
        grad.sum().backward()
    block = copy.deepcopy(NETWORKS["torchvision resnet50"][0]()).get_submodule("layer1.0").eval()
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(torch.jit.script(fused_of(block))(x), block(x))
