"""What `ran_kernels.fuse` keeps away from: modules that differ from CBAM somewhere, or do more."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

import ran_kernels

from . import test_fuse

KEEP: Callable[[Tensor], None] = list[Tensor]().append
CALLS = 0
TABLE = [1.0] * 500 + [2.0] * 4000
Forward = Callable[[Any, Tensor], Any]


class ClipsGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1e9, 1e9)


def timms(forward: Forward, **members: Any) -> nn.Module:
    """timm's module as a subclass of the same name with another forward."""
    kind = type("CbamModule", (CbamModule,), {"forward": forward, **members})
    return kind(8, rd_ratio=0.5)


def plain(self: Any, x: Tensor) -> Tensor:
    return self.spatial(self.channel(x))


def with_channel_part(change: Callable[[Tensor], Tensor]) -> nn.Module:
    """timm's module with another forward in its channel attention."""
    module: Any = CbamModule(8, rd_ratio=0.5)
    kind = type(module.channel)

    def forward(self: Any, x: Tensor) -> Tensor:
        return change(kind.forward(self, x))

    module.channel.__class__ = type("ChannelAttn", (kind,), {"forward": forward})
    return module


def with_attribute(name: str, value: object) -> nn.Module:
    module = CbamModule(8, rd_ratio=0.5)
    setattr(module.channel, name, value)
    return module


def called(make: Callable[[], nn.Module], change: Callable[[Any], Any]) -> nn.Module:
    module = make()
    change(module)
    return module


def scripted_clip() -> Callable[[Tensor], Tensor]:
    @torch.jit.script
    def clip(x: Tensor) -> Tensor:
        if x.size(2) > 200:
            x = x.relu()
        return x

    return clip


CLIP = scripted_clip()


def sets(self: Any, x: Tensor) -> Tensor:
    self.last_attention = self.channel(x)
    return self.spatial(self.last_attention)


def unpacks(self: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    return plain(self, x * 2 if h == w + 90 else x)


def with_mask(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return plain(self, x)


def appends(self: Any, x: Tensor) -> Tensor:
    self.seen.append(x.dim())
    return plain(self, x)


def counts(self: Any, x: Tensor) -> Tensor:
    type(self).calls += 1
    return plain(self, x)


def counting() -> Forward:
    calls = 0

    def forward(self: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(self, x)

    return forward


def counts_calls(self: Any, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return plain(self, x)


def keeps_elsewhere(self: Any, x: Tensor) -> Tensor:
    KEEP(kept := self.channel(x))
    return self.spatial(kept)


def swallows(self: Any, x: Tensor) -> Tensor:
    try:
        return plain(self, x if x.max() < 1e9 else x * 2)
    except Exception:
        return plain(self, x)


FORWARDS: dict[str, tuple[Forward, str]] = {
    "clamps": (lambda self, x: plain(self, x.clamp(-6, 6)), "calls clamp"),
    "clamps far out": (lambda self, x: plain(self, x.clamp(-1e300, 1e300)), "calls clamp"),
    "clamps by ReLU": (lambda self, x: plain(self, 1e7 - (1e7 - x).relu()), "calls rsub"),
    "shift and ReLU": (lambda self, x: plain(self, (x + 1e7).relu() + -1e7), "gradients"),
    "adds far out": (lambda self, x: plain(self, x) + (x + -1e7).relu() * 1e-3, "something else"),
    "value": (lambda self, x: plain(self, x if x.amax() < 1e9 else x * 2), "calls"),
    "item": (lambda self, x: plain(self, x * 2 if x[0, 0, 0, 0].item() == 0.125 else x), "calls"),
    "swallowed": (swallows, "calls"),
    "NaN": (lambda self, x: plain(self, x.nan_to_num()), "calls nan_to_num"),
    "size": (lambda self, x: plain(self, x if x.shape[2] < 999 else x * 2), "how large the input"),
    "size in parts": (
        lambda self, x: plain(self, x * 2 if x.shape[0] * x.size(-1) % 97 == 0 else x),
        "how large the input is",
    ),
    "size, unpacked": (unpacks, "how large the input is"),
    "size by division": (lambda self, x: plain(self, x * (1 + x.shape[2] // 99)), "how large"),
    "size over size": (
        lambda self, x: plain(self, x * (1.0 if x.shape[2] / x.shape[3] < 50 else 2.0)),
        "how large",
    ),
    "size in a table": (lambda self, x: plain(self, x * {97: 2.0}.get(len(x), 1.0)), "asks"),
    "size as a key": (lambda self, x: plain(self, x * {97: 2.0}.get(x.shape[2], 1.0)), "how large"),
    "size as a number": (
        lambda self, x: plain(self, x * (int(x.shape[2]) > 999 or 1)),
        "how large",
    ),
    "size as an index": (lambda self, x: plain(self, x * TABLE[x.shape[2]]), "input's size"),
    "length": (lambda self, x: plain(self, x if len(x) < 999 else x * 2), "asks a tensor for"),
    "size in a script": (lambda self, x: plain(self, CLIP(x)), "depends on the input's size"),
    "dtype": (lambda self, x: plain(self, x * 2 if x.dtype == torch.half else x), "for dtype"),
    "device": (lambda self, x: plain(self, x * 2 if x.is_cuda else x), "for is_cuda"),
    "layout": (lambda self, x: plain(self, x if x.is_contiguous() else x * 2), "for is_contiguous"),
    "strides": (lambda self, x: plain(self, x if x.stride(3) == 1 else x * 2), "for stride"),
    "leaf": (lambda self, x: plain(self, x * 2 if x.is_leaf else x), "for is_leaf"),
    "autocast": (
        lambda self, x: plain(self, x * 1 if torch.is_autocast_enabled("cpu") else x),
        "depends on autocast",
    ),
    "gradients on": (
        lambda self, x: plain(self, x * 1 if torch.is_grad_enabled() else x),
        "on gradients",
    ),
    "factor by gradients": (
        lambda self, x: plain(self, x * (1.0 if torch.is_grad_enabled() else 2.0)),
        "on gradients",
    ),
    "factor by autocast": (
        lambda self, x: plain(self, x * (2.0 if torch.is_autocast_enabled("cpu") else 1.0)),
        "depends on autocast",
    ),
    "autocast off": (torch.autocast("cuda", enabled=False)(plain), "sets autocast"),
    "gradients set": (torch.enable_grad()(plain), "sets autocast or the recording of gradients"),
    "random": (
        lambda self, x: plain(self, x * (2.0 if random.random() < 1e-9 else 1.0)),
        "draws random numbers",
    ),
    "closure": (counting(), "sets a variable of CbamModule.forward"),
    "global": (counts_calls, "sets a variable of CbamModule.forward"),
    "training": (
        lambda self, x: plain(self, x) * (1.0 if self.training else 1 + 1e-6),
        "something else",
    ),
    "upcasts": (lambda self, x: plain(self, x.float()).to(x), "does not run"),
    "detaches": (lambda self, x: plain(self, x.detach()), "calls detach"),
    "stops gradients": (torch.no_grad()(plain), "other gradients"),
    "derivative of its own": (
        lambda self, x: plain(self, ClipsGradients.apply(x)),
        "derivative of its own",
    ),
    "tensor hook": (
        lambda self, x: (x.register_hook(lambda g: g) if x.requires_grad else 0, plain(self, x))[1],
        "asks a tensor for requires_grad",
    ),
    "dropout": (
        lambda self, x: plain(self, nn.functional.dropout(x, 1e-9, self.training)),
        "calls",
    ),
    "noise": (lambda self, x: plain(self, x + torch.zeros(1)), "calls zeros"),
    "writes": (lambda self, x: plain(self, x.mul_(1.0)), "writes into its input"),
    "tuple": (lambda self, x: (plain(self, x),), "something else"),
    "layout out": (lambda self, x: plain(self, x).contiguous(), "another memory layout"),
    "attribute": (sets, "sets its attribute last_attention"),
    "keeps elsewhere": (keeps_elsewhere, "keeps a result"),
    "more arguments": (with_mask, "takes more than the features"),
    "any arguments": (lambda self, *x: plain(self, *x), "takes more than the features"),
}

MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        name: (lambda forward=forward: timms(forward), reason)  # type: ignore[misc]
        for name, (forward, reason) in FORWARDS.items()
    },
    "list": (lambda: called(lambda: timms(appends), lambda m: setattr(m, "seen", [])), "seen"),
    "class": (lambda: timms(counts, calls=0), "calls"),
    "part": (lambda: with_channel_part(lambda x: x.clamp(max=1e6)), "calls clamp"),
    "call": (lambda: timms(plain, __call__=lambda self, x: x), "has a __call__ of its own"),
    "train": (lambda: timms(plain, train=nn.Module.train), "has a train of its own"),
    "forward of one": (
        lambda: called(lambda: CbamModule(8), lambda m: setattr(m, "forward", lambda x: x)),
        "another forward",
    ),
    "parameter": (
        lambda: called(
            lambda: CbamModule(8), lambda m: m.register_parameter("alpha", nn.Parameter(Tensor(1)))
        ),
        "it has alpha, which CBAM has not",
    ),
    "buffer": (
        lambda: called(lambda: CbamModule(8), lambda m: m.register_buffer("beta", torch.ones(1))),
        "it has beta",
    ),
    "lock": (lambda: with_attribute("lock", threading.Lock()), "cannot be copied"),
    "generator": (lambda: with_attribute("numbers", (n for n in "ab")), "cannot be copied"),
    "graph": (
        lambda: with_attribute("last", torch.ones(1, requires_grad=True) * 2),
        "channel keeps a tensor in its attribute last",
    ),
    "graph in a list": (
        lambda: with_attribute("last", [torch.ones(1, requires_grad=True) * 2]),
        "cannot be copied",
    ),
    "spectral norm": (
        lambda: called(
            lambda: CbamModule(8),
            lambda m: nn.utils.parametrizations.spectral_norm(m.channel.fc1),
        ),
        "ParametrizedConv2d",
    ),
    "old weight norm": (
        lambda: called(lambda: CbamModule(8), lambda m: nn.utils.weight_norm(m.channel.fc1)),
        "channel.fc1 has hooks",
    ),
}


def hook(*_: Any, **__: Any) -> None: ...


HOOKS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda m: m.register_forward_hook(hook),
    "forward, keywords": lambda m: m.register_forward_hook(hook, with_kwargs=True),
    "forward, always": lambda m: m.register_forward_hook(hook, always_call=True),
    "before forward": lambda m: m.register_forward_pre_hook(hook),
    "backward": lambda m: m.register_full_backward_hook(hook),
    "before backward": lambda m: m.register_full_backward_pre_hook(hook),
    "old backward": lambda m: m.register_backward_hook(hook),
    "state_dict": lambda m: m.register_state_dict_post_hook(hook),
    "before state_dict": lambda m: m.register_state_dict_pre_hook(hook),
    "load": lambda m: m.register_load_state_dict_post_hook(hook),
    "before load": lambda m: m.register_load_state_dict_pre_hook(hook),
}
for _name, _register in HOOKS.items():
    MODULES[f"{_name} hook"] = (
        lambda register=_register: called(lambda: CbamModule(8), lambda m: register(m.spatial)),  # type: ignore[misc]
        "spatial has hooks",
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", MODULES)
def test_what_differs_somewhere_is_left_with_the_reason(kind: str) -> None:
    make, reason = MODULES[kind]
    model = nn.ModuleDict({"odd": make()})
    odd = model["odd"]
    report = ran_kernels.fuse(model)
    assert model["odd"] is odd
    assert report.replaced == []
    assert any(part in report.left["odd"] for part in reason.split("|")), report.left["odd"]


def test_hooks_for_all_modules_leave_everything() -> None:
    model = nn.Sequential(CbamModule(8))
    handle = nn.modules.module.register_module_full_backward_pre_hook(hook)
    try:
        assert ran_kernels.fuse(model).left == {"0": "hooks for all modules are registered"}
    finally:
        handle.remove()
    assert ran_kernels.fuse(model).replaced == ["0"]


class Checks(CbamModule):
    """Sees to the number of channels, as many do: no other module for that."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        if c != 8:
            raise ValueError("channels")
        return plain(self, x.view(n, c, h * w).view(x.shape))


Checks.__name__ = "CbamModule"


def test_harmless_changes_are_replaced() -> None:
    model = nn.Sequential(Checks(8), timms(lambda self, input: plain(self, input)))
    assert ran_kernels.fuse(model).replaced == ["0", "1"]


def test_modules_alike_but_for_a_number_are_each_asked() -> None:
    def scaled(by: float) -> nn.Module:
        return called(lambda: timms(forward), lambda m: setattr(m, "_scale", by))

    def forward(self: Any, x: Tensor) -> Tensor:
        return plain(self, x) * self._scale

    kind = type(scaled(1.0))
    model: Any = nn.Sequential(scaled(1.0), scaled(1.0), scaled(2.0), scaled(1.0))
    for module in model:
        module.__class__ = kind
    assert ran_kernels.fuse(model).replaced == ["0", "1", "3"]


def test_nothing_is_touched_when_planning_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = test_fuse.Net(test_fuse.MAKERS["timm"])
    before = list(model.named_modules())

    def interrupt(*arguments: Any) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(arguments)
        return understood(*arguments)

    fuse: Any = __import__("sys").modules["ran_kernels.fuse"]
    understood, seen = fuse.understood, list[Any]()
    monkeypatch.setattr(fuse, "understood", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ran_kernels.fuse(model)
    assert seen
    assert list(model.named_modules()) == before


class Fragile(dict[str, Any]):
    """Modules by name, of which the second cannot be exchanged."""

    fail = False

    def __setitem__(self, name: str, module: Any) -> None:
        if name == "b" and not isinstance(module, CbamModule):
            raise RuntimeError("no")
        super().__setitem__(name, module)


def test_replacing_fails_whole() -> None:
    model = nn.Module()
    model.a, model.b = CbamModule(8), CbamModule(8)
    modules = dict(model._modules)
    model._modules = Fragile(modules)
    with pytest.raises(RuntimeError, match="no"):
        ran_kernels.fuse(model)
    assert dict(model._modules) == modules


def test_a_part_that_the_model_has_elsewhere_is_not_lost() -> None:
    shared: Any = CbamModule(8)
    model = nn.ModuleDict({"a": shared, "channel": shared.channel, "b": CbamModule(8)})
    report = ran_kernels.fuse(model)
    assert report.replaced == ["b"]
    assert report.left == {"a": "the model has its channel elsewhere, too"}


def test_modules_with_parts_in_common_go_on_having_them_in_common() -> None:
    first: Any = CbamModule(8)
    second: Any = CbamModule(8)
    second.spatial = first.spatial
    second.channel.fc2.weight = first.channel.fc2.weight
    model: Any = nn.Sequential(first, second)
    assert ran_kernels.fuse(model).replaced == ["0", "1"]
    assert model[0].norm is model[1].norm
    assert model[0].conv is model[1].conv
    assert model[0].fc2.weight is model[1].fc2.weight
    assert model[0].fc1.weight is not model[1].fc1.weight


def test_modules_that_hold_one_another_are_found_once() -> None:
    model: Any = nn.Module()
    model.inner = nn.Module()
    model.inner.outer = model
    model.inner.attention = CbamModule(8)
    assert ran_kernels.fuse(model).replaced == ["inner.attention"]


def test_modules_within_a_module_of_a_known_name_are_found() -> None:
    network = type("CBAM", (nn.Sequential,), {})(CbamModule(8))
    report = ran_kernels.fuse(nn.Sequential(network))
    assert report.replaced == ["0.0"]
    assert [*report.left] == ["0"]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_fuses_in_any_mode_of_the_caller(around: Any) -> None:
    with around(), torch.autocast("cpu", torch.bfloat16):
        model = nn.Sequential(CbamModule(8))
        assert ran_kernels.fuse(model).replaced == ["0"]
