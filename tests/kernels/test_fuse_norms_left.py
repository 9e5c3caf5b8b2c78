"""What ``ran_kernels.fuse(model, norms=True)`` leaves as it is, with the reason."""

import copy
import os
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran_kernels

COUNTS = {"calls": 0}
FLAG = False
total = 0


class Settings:
    flag = False


SETTINGS = Settings()


class Block(nn.Module):
    """A convolution and a normalisation, for forwards of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.flag, self.kept, self.table = True, [1.0], {"eps": object()}
        self.register_buffer("seen", torch.zeros(()))


Forward = Callable[[Any, Tensor], Any]


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.conv(x)
    return F.relu(self.bn(x))


def _autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.relu(self.bn(self.conv(x)))


def _saved_elsewhere(self: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return F.relu(self.bn(self.conv(x)))


def _asks_for_gradients(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    return y * 2 if torch.is_grad_enabled() else y


def _asks_for_autocast(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    return y * 2 if torch.is_autocast_enabled("cpu") else y


def _values(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    return y if y.sum() > 1 else -y


def _size(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    return y[:, :, 1:] if x.shape[2] > 3 else y


def _checkpoints(self: Any, x: Tensor) -> Tensor:
    y = torch.utils.checkpoint.checkpoint(lambda x: self.conv(x), x, use_reentrant=False)
    return F.relu(self.bn(y))


def _prints(self: Any, x: Tensor) -> Tensor:
    print("seen")
    return F.relu(self.bn(self.conv(x)))


def _sets(self: Any, x: Tensor) -> Tensor:
    self.last = F.relu(self.bn(self.conv(x)))
    return self.last


def _counts(self: Any, x: Tensor) -> Tensor:
    self.seen = self.seen + 1
    return F.relu(self.bn(self.conv(x)))


def _keeps(self: Any, x: Tensor) -> Tensor:
    self.kept.append(2.0)
    return F.relu(self.bn(self.conv(x)))


def _table(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x))) if self.table["eps"] else x


def _state(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x))) if self.held.flag else x


def _random(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    return y * 2 if random.random() < 2 else y


def _noise(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x))) + torch.randn(4, 1, 1)


def _constant(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x))) + torch.ones(4, 1, 1)


def _global(self: Any, x: Tensor) -> Tensor:
    COUNTS["calls"] += 1
    return F.relu(self.bn(self.conv(x)))


def _sets_global(self: Any, x: Tensor) -> Tensor:
    global total
    total = 1
    return F.relu(self.bn(self.conv(x)))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


def _derivative(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(Twice.apply(self.conv(x))))


ELSEWHERE = nn.Conv2d(4, 4, 1)


def _elsewhere(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(ELSEWHERE(x)))


def _kind_of_result(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return F.relu(self.bn(y[0] if isinstance(y, tuple) else y))


def _marks(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(self.conv(x)))
    y.mark = "y"  # type: ignore[attr-defined]
    return y


def _used_twice(self: Any, x: Tensor) -> Tensor:
    y = self.bn(self.conv(x))
    return F.relu(y) + y


def _into_the_shortcut(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    x += self.bn(x * 2)
    return F.relu(x)


def _may_change(self: Any, x: Tensor) -> Tensor:
    y = self.bn(x)
    z = self.conv(x.mul_(2))
    return F.relu(y + z)


def _unit(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x)))


def _within(flag: bool) -> Forward:
    return lambda self, x: _unit(self, x) * (2 if flag else 1)


def _catches(self: Any, x: Tensor) -> Tensor:
    try:
        return -_unit(self, x) if x.sum() > 1 else x
    except TypeError:
        return _unit(self, x)


def _other_kind(self: Any, x: Tensor) -> Tensor:
    return _unit(self, x.tensors if hasattr(x, "tensors") else x)


def _reads_statistics(self: Any, x: Tensor) -> Tensor:
    y = self.bn(self.conv(x))
    return F.relu(y + x * self.bn.running_mean[:, None, None])


def _writes_parameters(self: Any, x: Tensor) -> Tensor:
    bias = self.bn.bias.detach()
    y = self.bn(self.conv(x))
    bias.add_(1)
    return F.relu(y + x)


#: A forward, and a part of the reason for which its normalisation is left.
LEFT: dict[str, tuple[Forward, str]] = {
    "no_grad": (_no_grad, "enters a context or catches errors"),
    "autocast": (_autocast, "enters a context or catches errors"),
    "saved tensors": (_saved_elsewhere, "enters a context or catches errors"),
    "decorated": (torch.no_grad()(_used_twice), "sets autocast or the recording of gradients"),
    "gradients": (_asks_for_gradients, "depends on autocast or the recording"),
    "whether autocast": (_asks_for_autocast, "depends on autocast or the recording"),
    "values": (_values, "torch.fx cannot follow it: symbolically traced variables"),
    "size": (_size, "torch.fx cannot follow it: symbolically traced variables"),
    "checkpoint": (_checkpoints, "checkpoints"),
    "print": (_prints, "prints"),
    "attribute": (_sets, "sets the attribute last"),
    "buffer": (_counts, "sets the attribute seen"),
    "list": (_keeps, "changes its attribute kept"),
    "table": (_table, "list or dict with a object"),
    "state": (_state, "reads its attribute held, which holds a Held"),
    "random": (_random, "uses the global variable random.random"),
    "noise": (_noise, "makes a tensor of its own"),
    "constant": (_constant, "makes a tensor of its own"),
    "global": (_global, "uses the global variable COUNTS"),
    "sets global": (_sets_global, "uses the global variable total"),
    "derivative": (_derivative, "has a derivative of its own"),
    "module elsewhere": (_elsewhere, "uses the global variable ELSEWHERE"),
    "kind of a result": (_kind_of_result, "asks of which class a result is"),
    "mark": (_marks, "sets the attribute mark"),
    "used twice": (_used_twice, "the result of bn is used before the ReLU, too"),
    "into the shortcut": (_into_the_shortcut, "bn is added in place to another tensor"),
    "input that changes": (_may_change, "what bn normalises may change before the sum"),
    "flag": (lambda self, x: _unit(self, x) * (2 if FLAG else 1), "the global variable FLAG"),
    "object": (lambda self, x: _unit(self, x) * SETTINGS.flag, "the global variable SETTINGS"),
    "class": (lambda self, x: _unit(self, x) * Settings.flag, "global variable Settings.flag"),
    "environment": (lambda self, x: _unit(self, x) * len(os.environ), "variable os.environ"),
    "getenv": (lambda self, x: x if os.getenv("NONE") else _unit(self, x), "variable environ"),
    "numpy": (lambda self, x: _unit(self, x) * np.random.rand(), "variable np.random.rand"),
    "around": (_within(False), "uses the variable flag of a function around it"),
    "type": (lambda self, x: _unit(self, x) * (type(x) is Tensor), "uses type()"),
    "own class": (lambda self, x: _unit(self, x) * self.__class__.__name__.count("O"), "__class__"),
    "other kind": (_other_kind, "asks a tensor for tensors"),
    "parameters": (
        lambda self, x: _unit(self, x).to(next(self.parameters()).dtype),
        "goes through its parameters or buffers",
    ),
    "kind of dict": (lambda self, x: OrderedDict(out=_unit(self, x)), "returns a OrderedDict"),
    "called state": (lambda self, x: self.held(_unit(self, x)), "held, which holds a Held"),
    "errors": (_catches, "enters a context or catches errors"),
    "statistics": (_reads_statistics, "what bn holds is used elsewhere, too"),
    "parameters written": (_writes_parameters, "what bn holds is used elsewhere, too"),
}


class Held:
    flag = True

    def __call__(self, x: Tensor) -> Tensor:
        return x


def made(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    module = type("Own", (Block,), {"forward": forward, "__module__": __name__})()
    module.held = Held()
    return module


@pytest.mark.parametrize("name", LEFT)
def test_left_with_the_reason(name: str) -> None:
    forward, reason = LEFT[name]
    module = made(forward)
    before = copy.deepcopy({k: v for k, v in vars(module).items() if k not in ("held", "table")})
    model = nn.Sequential(module)
    report = ran_kernels.fuse(model, norms=True)
    assert report.norms == {}
    assert [*report.norms_left] == ["0"]
    assert reason in report.norms_left["0"]
    assert str(report).splitlines()[1:] == [
        "0 normalisations fused in 0 modules, 1 modules left",
        f"  left 0: {report.norms_left['0']}",
    ]
    assert type(module).__mro__[1] is Block
    assert type(module).forward is forward
    assert module.kept == before["kept"]
    assert "last" not in vars(module)
    assert torch.equal(module.get_buffer("seen"), torch.zeros(()))
    assert (nn.Module.__setattr__.__qualname__, "__getattribute__" in vars(nn.Module)) == (
        "Module.__setattr__", False,
    )  # fmt: skip


def _plain(self: Any, x: Tensor) -> Tensor:
    return self.act(self.bn(self.conv(x)))


def _instance(module: Any) -> Any:
    module.forward = lambda x: x
    return module


class Copied(Block):
    forward = _plain

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Keyword(Block):
    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return self.act(self.bn(x)) * scale


class Graph(Block):
    forward = _plain


class Told(Block):
    forward = _plain

    def __init_subclass__(cls) -> None:
        raise NotImplementedError


def _parametrised(module: nn.Module) -> nn.Module:
    assert ran_kernels.fuse(module, norms=True).norms
    module.register_parameter("own", nn.Parameter(torch.ones(1)))
    return nn.utils.parametrize.register_parametrization(module, "own", nn.Identity())


def _hooked(module: Any) -> Any:
    module.act.register_forward_hook(lambda *args: None)
    return module


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward of its own": (lambda: _instance(made(_plain)), "it has been given another forward"),
    "copying of its own": (Copied, "it has a __deepcopy__ of its own"),
    "told": (Told, "its class is told of those derived from it"),
    "class over it": (lambda: _parametrised(Graph()), "put over one that is fused"),
    "keyword": (Keyword, "its forward takes no features"),
    "graph": (lambda: torch.fx.symbolic_trace(Graph()), "it has a __deepcopy__ of its own"),
    "script": (lambda: torch.jit.trace(Graph(), torch.ones(2, 4, 3, 3)), "a compiled script"),
    "hooks": (lambda: _hooked(made(_plain)), "act has hooks or another forward"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_their_own_kind_are_left(name: str) -> None:
    make, reason = MODULES[name]
    module = make()
    report = ran_kernels.fuse(nn.Sequential(module), norms=True)
    assert report.norms == {}
    assert reason in report.norms_left["0"]
