"""Networks with normalisations that ``ran_kernels.fuse(model, norms=True)`` is tried on."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import ran_kernels
from ran_kernels.fuse import forwards

from .test_fuse import randomised


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


def without(model: nn.Module, *parts: str) -> nn.Module:
    """`model` without its wide ends, which would take the most of a test's time."""
    for name in parts:
        setattr(model, name, nn.Identity())
    return model


def bottlenecks() -> nn.Module:
    block = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(block, [2, 1, 1, 1], width_per_group=4)
    return without(model, "layer3", "layer4", "fc")


def basic() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return without(torchvision.models.ResNet(block, [1, 1, 1, 1]), "layer3", "layer4", "fc")


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
FIRST = BLOCKS[:2]
RESNETV2 = {
    **{f"stages.{i}.blocks.0.norm{j}": ["norm+act"] for i in range(4) for j in (1, 2, 3)},
    "norm": ["norm+act"],
}
UNITS = ["s1.b1", "s2.b1"]
REGNETX = {
    "stem.bn": ["norm+act"],
    # The last normalisation is in a part that ends in it.
    **{unit: ["conv3.bn+shortcut+act3"] for unit in UNITS},
    **{f"{unit}.conv{i}.bn": ["norm+act"] for unit in UNITS for i in (1, 2)},
}
#: A network, and what is fused in it.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, list[str]]]] = {
    "own": (Net, NET),
    "torchvision resnet18": (basic, {"": ["bn1+relu"], **dict.fromkeys(FIRST, BASIC)}),
    "torchvision resnet50": (
        bottlenecks,
        {"": ["bn1+relu"], **dict.fromkeys([*FIRST, "layer1.1"], BOTTLENECK)},
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
    "timm regnetx": (lambda: without(of_timm("regnetx_002")(), "s3", "s4", "head"), REGNETX),
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
