"""`ran_kernels.fuse` on random modules that are, or nearly are, CBAM.

Each module is drawn from a seed, which a failure names; RAN_FUZZ_SEED sets the first of them.
"""

import copy
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran_kernels

FIRST = int(os.environ.get("RAN_FUZZ_SEED", "0"))
BATCHES, EACH = 8, 6
CHANNELS = (4, 6, 16)

Change = Callable[[Tensor], Tensor]

#: The ways in which CBAM is written: pools over positions and over channels, gates, products.
MEANS: tuple[Change, ...] = (
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, x.shape[2:], stride=(x.size(2), x.size(3))),
    lambda x: torch.mean(x.flatten(2), 2)[..., None, None],
)
MAXIMA: tuple[Change, ...] = (
    lambda x: x.amax((2, 3), keepdim=True),
    lambda x: F.adaptive_max_pool2d(x, (1, 1)),
    lambda x: F.max_pool2d(x, x.shape[2:]),
    lambda x: x.view(x.size(0), x.size(1), -1).max(dim=2)[0].unsqueeze(2).unsqueeze(3),
)
MAPS: tuple[tuple[Change, Change], ...] = (
    (lambda x: x.mean(1, keepdim=True), lambda x: x.amax(1, keepdim=True)),
    (lambda x: torch.mean(x, 1).unsqueeze(1), lambda x: torch.max(x, 1)[0].unsqueeze(1)),
)
GATES: tuple[Change, ...] = (torch.sigmoid, nn.Sigmoid(), lambda x: x.sigmoid())
PRODUCTS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, gate: x * gate,
    lambda x, gate: gate * x,
    lambda x, gate: torch.mul(x, gate.expand_as(x)),
)


class Clips(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1e-2, 1e-2)


#: Changes of a tensor on its way, made of a number from 1 to 1e12 and one from 2 to 999.
DETOURS: dict[str, Callable[[float, int], Change]] = {
    "clamp": lambda at, n: lambda x: x.clamp(-at, at),
    "minimum": lambda at, n: lambda x: torch.minimum(x, x.new_tensor(at)),
    "ReLU far out": lambda at, n: lambda x: (x + at).relu() + -at,
    "factor": lambda at, n: lambda x: x * (1 + 1 / at),
    "addend": lambda at, n: lambda x: x + 1 / at,
    "detach": lambda at, n: lambda x: x.detach(),
    "derivative": lambda at, n: lambda x: Clips.apply(x),
    "size": lambda at, n: lambda x: x if x.shape[(0, 2, 3)[n % 3]] < n else x * 1.01,
    "size by division": lambda at, n: lambda x: x * (1 + x.size(2) // n),
    "size by table": lambda at, n: lambda x: x * {n: 2.0}.get(x.size(3), 1.0),
    "ratio": lambda at, n: lambda x: x * (1.0 if x.shape[2] / x.shape[3] < n else 2.0),
    "value": lambda at, n: lambda x: x * 2 if bool(x.max() > at) else x,
    "where": lambda at, n: lambda x: torch.where(x > at, at, x),
    "gradients": lambda at, n: lambda x: x * (1.0 if torch.is_grad_enabled() else 2.0),
    "autocast": lambda at, n: lambda x: x * (2.0 if torch.is_autocast_enabled("cpu") else 1.0),
    "noise": lambda at, n: lambda x: x * (2.0 if random.random() < 1 / n else 1.0),
    "in place": lambda at, n: lambda x: x.add_(0),
    "NaN": lambda at, n: lambda x: x.nan_to_num(),
    "float32": lambda at, n: lambda x: x.float().to(x.dtype),
    "dropout": lambda at, n: lambda x: F.dropout(x, 1 / n),
    "ReLU": lambda at, n: lambda x: x.relu(),
    "nothing": lambda at, n: lambda x: x,
}
STRUCTURES = (
    "spatial first", "maps turned", "pools added", "one pool", "shortcut", "conv bias", "dilation",
    "no norm", "norm twice", "norm of another kind", "extra", "activation", "keeps",
)  # fmt: skip
#: Where a detour may be: before, between and behind the halves, at pooled values, logits, maps.
SPOTS = ("in", "between", "out", "pooled", "logits", "maps", "spatial logits")


class Recipe(NamedTuple):
    """How a module is made."""

    timms: bool
    channels: int
    hidden: int
    kernel: int
    biases: bool
    #: What makes it another module, if anything does.
    twists: dict[str, Any]
    forms: dict[str, Any]


def drawn(seed: int) -> Recipe:
    draw = random.Random(seed)
    twists: dict[str, Any] = {}
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        if draw.random() < 0.75:
            name = draw.choice(list(DETOURS))
            change = DETOURS[name](10 ** draw.uniform(0, 12), draw.randint(2, 999))
            twists[draw.choice(SPOTS)] = (name, change)
        else:
            twists[draw.choice(STRUCTURES)] = True
    forms = {
        "mean": draw.choice(MEANS), "max": draw.choice(MAXIMA), "maps": draw.choice(MAPS),
        "gate": draw.choice(GATES), "product": draw.choice(PRODUCTS),
        "eps": draw.choice((1e-5, 1e-3, 0.5)), "momentum": draw.choice((0.1, 0.01, None)),
        "frozen": draw.random() < 0.2, "max first": draw.random() < 0.5,
    }  # fmt: skip
    return Recipe(draw.random() < 0.6, draw.choice(CHANNELS), draw.choice((1, 2, 5)),
                  draw.choice((1, 3, 7)), draw.random() < 0.5, twists, forms)  # fmt: skip


class Part(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def at(self, spot: str, x: Tensor) -> Tensor:
        return self.recipe.twists[spot][1](x) if spot in self.recipe.twists else x


class Channel(Part):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        c, hidden, bias = recipe.channels, recipe.hidden, recipe.biases
        act = nn.LeakyReLU() if "activation" in recipe.twists else nn.ReLU()
        if recipe.timms:
            self.fc1, self.act = nn.Conv2d(c, hidden, 1, bias=bias), act
            self.fc2 = nn.Conv2d(hidden, c, 1, bias=bias)
        else:
            self.mlp = nn.Sequential(
                nn.Flatten(), nn.Linear(c, hidden, bias), act, nn.Linear(hidden, c, bias)
            )
            self.pool_types = ["avg", "max"]

    def logits(self, pooled: Tensor) -> Tensor:
        if self.recipe.timms:
            return self.fc2(self.act(self.fc1(pooled)))
        return self.mlp(pooled)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        forms, twists = self.recipe.forms, self.recipe.twists
        pools = [self.at("pooled", forms["mean"](x)), forms["max"](x)]
        if forms["max first"]:
            pools.reverse()
        if "pools added" in twists:
            logits = self.logits(pools[0] + pools[1])
        elif "one pool" in twists:
            logits = self.logits(pools[0])
        else:
            logits = self.logits(pools[0]) + self.logits(pools[1])
        return forms["product"](x, forms["gate"](self.at("logits", logits)))


class Spatial(Part):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        twists, k = recipe.twists, recipe.kernel
        dilation = 2 if "dilation" in twists else 1
        conv = nn.Conv2d(
            2, 1, k, padding=k // 2 * dilation, dilation=dilation, bias="conv bias" in twists
        )
        norm: nn.Module = nn.BatchNorm2d(1, recipe.forms["eps"], recipe.forms["momentum"])
        if "no norm" in twists:
            norm = nn.Identity()
        if "norm of another kind" in twists:
            norm = nn.InstanceNorm2d(1, affine=True)
        setattr(self, "conv" if recipe.timms else "spatial", _Named(conv, norm))

    def forward(self, x: Tensor) -> Tensor:
        forms, twists = self.recipe.forms, self.recipe.twists
        maps = [form(x) for form in forms["maps"]]
        if self.recipe.timms == ("maps turned" in twists):
            maps.reverse()
        conv: Any = self.conv if self.recipe.timms else self.spatial
        logits = conv.conv(self.at("maps", torch.cat(maps, dim=1)))
        for _ in range(2 if "norm twice" in twists else 1):
            logits = conv.bn(logits)
        return forms["product"](x, forms["gate"](self.at("spatial logits", logits)))


class _Named(nn.Module):
    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn


class Whole(Part):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        names = ("channel", "spatial") if recipe.timms else ("ChannelGate", "SpatialGate")
        for name, kind in zip(names, (Channel, Spatial), strict=True):
            setattr(self, name, kind(recipe))
        if "extra" in recipe.twists:
            self.extra = nn.BatchNorm2d(recipe.channels)

    def forward(self, x: Tensor) -> Tensor:
        twists, start = self.recipe.twists, x
        halves = [half for name, half in self.named_children() if name != "extra"]
        if "spatial first" in twists:
            halves.reverse()
        x = self.at("between", halves[0](self.at("in", x)))
        if "keeps" in twists:
            self.kept = x
        x = self.at("out", halves[1](x))
        x = self.extra(x) if "extra" in twists else x
        return x + start if "shortcut" in twists else x


KINDS = {timms: type(name, (Whole,), {}) for timms, name in ((True, "CbamModule"), (False, "CBAM"))}


def made(recipe: Recipe) -> nn.Module:
    module = KINDS[recipe.timms](recipe).double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            part.train(not recipe.forms["frozen"])
    return module


def inputs(channels: int, draw: random.Random) -> Iterator[Tensor]:
    """Of sizes, values and layouts other than `fuse` asks."""
    for scale in (1.0, 1e-8, 10.0, 10 ** draw.uniform(1, 14)):
        shape = draw.randint(2, 4), channels, draw.randint(1, 30), draw.randint(1, 30)
        x = torch.randn(shape, dtype=torch.float64) * scale
        if draw.random() < 0.5:
            x = x.contiguous(memory_format=torch.channels_last)
        yield x
    yield torch.randn(1, channels, 4, 1010, dtype=torch.float64)
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    x[0, 0, 0, 0] = draw.choice((torch.inf, -torch.inf, torch.nan))
    yield x


def answers(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Result, gradients in the order of `leaves`, buffers, and the result in evaluation mode."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    leaves = [x, *module.parameters()]
    wave = torch.linspace(-3, 5, out.numel(), dtype=out.dtype).cos().view(out.shape)
    found = [out, *torch.autograd.grad(out, leaves, wave), *module.buffers()]
    with torch.no_grad():
        found += [module(x), copy.deepcopy(module).eval()(x)]
    return [tensor.detach().clone() for tensor in found]


def equal(a: Tensor, b: Tensor) -> bool:
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=1e-8, atol=1e-9 * scale, equal_nan=True)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_is_replaced_computes_the_same_and_cbam_is_replaced(batch: int) -> None:
    for seed in range(FIRST + batch * EACH, FIRST + (batch + 1) * EACH):
        recipe = drawn(seed)
        torch.manual_seed(seed)
        original = made(recipe)
        model: Any = nn.Sequential(copy.deepcopy(original))
        model[0].recipe = recipe
        report = ran_kernels.fuse(model)
        case = f"seed {seed}: {recipe}"
        if not recipe.twists:
            assert report.left == {}, case
        if report.left:
            continue
        draw = random.Random(seed)
        for x in inputs(recipe.channels, draw):
            pair = zip(
                answers(copy.deepcopy(model[0]), x),
                answers(copy.deepcopy(original), x),
                strict=True,
            )
            for index, (got, want) in enumerate(pair):
                # amax spreads the gradient of NaN, which infinity becomes on the way; max does not.
                if not x.isfinite().all() and 0 < index <= 1 + len(list(original.parameters())):
                    continue
                assert got.shape == want.shape, case
                assert equal(got, want), f"{case}, answer {index} for {tuple(x.shape)}"


def test_the_fuzz_makes_both_kinds() -> None:
    recipes = [drawn(seed) for seed in range(BATCHES * EACH)]
    plain = [recipe for recipe in recipes if not recipe.twists]
    assert 5 < len(plain) < len(recipes) - 25
    assert {recipe.timms for recipe in plain} == {True, False}
