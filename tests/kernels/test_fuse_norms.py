"""``ran_kernels.fuse(model, norms=True)`` on other libraries' networks and on people's own."""

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
