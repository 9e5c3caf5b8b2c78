"""Weights of residual networks with and without CBAM, beside the networks they come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet

import ran
from ran.errors import UserError
from ran_kernels.nn import CBAM
from tests.models.helpers import randomise, relative

LAYERS = (2, 1, 1, 1)
#: Networks of every kind of block, and torchvision's arguments for the same.
KINDS: dict[str, tuple[type[resnet.BasicBlock] | type[resnet.Bottleneck], dict[str, int]]] = {
    "cbam_resnet18": (resnet.BasicBlock, {}),
    "cbam_resnet50": (resnet.Bottleneck, {}),
    "cbam_resnext50_32x4d": (resnet.Bottleneck, {"groups": 32, "width_per_group": 4}),
}


def ours(kind: str, **options: Any) -> nn.Module:
    model = ran.create_model(kind, layers=LAYERS, num_classes=10, **options)
    return randomise(model).double().eval()


def prepared(original: nn.Module) -> nn.Module:
    """The network, random: with perceptrons that tell channels apart."""
    for name, module in randomise(original).named_modules():
        if isinstance(module, nn.Linear) and name != "fc":
            nn.init.normal_(module.weight, std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    return original.double().eval()


def assert_equal_outputs(model: nn.Module, original: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative(model(x), original(x)) < 1e-9


class OfficialGates(nn.Module):
    """CBAM as the authors' repository computes it and names its parts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        perceptron = [nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU()]
        mlp = nn.Sequential(*perceptron, nn.Linear(hidden, channels))
        spatial = nn.ModuleDict(
            {"conv": nn.Conv2d(2, 1, 7, padding=3, bias=False), "bn": nn.BatchNorm2d(1)}
        )
        self.ChannelGate = nn.ModuleDict({"mlp": mlp})
        self.SpatialGate = nn.ModuleDict({"spatial": spatial})

    def forward(self, x: Tensor) -> Tensor:
        mlp = self.get_submodule("ChannelGate.mlp")
        logits = mlp(x.mean(dim=(2, 3))) + mlp(x.amax(dim=(2, 3)))
        x = x * logits.sigmoid()[:, :, None, None]
        maps = torch.stack((x.amax(dim=1), x.mean(dim=1)), dim=1)
        conv, norm = (self.get_submodule(f"SpatialGate.spatial.{name}") for name in ("conv", "bn"))
        return x * norm(conv(maps)).sigmoid()


class BeforeSum(nn.Module):
    """A block's last normalisation, followed by its CBAM, which keeps its own place and name."""

    def __init__(self, norm: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.norm, self.block = norm, [block]

    def forward(self, x: Tensor) -> Tensor:
        return self.block[0].get_submodule("cbam")(self.norm(x))


def official(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The authors' network and its tensors by their names: torchvision's with gates in it."""
    block, options = KINDS[kind]
    network = resnet.ResNet(block, list(LAYERS), num_classes=10, **options)
    blocks = [m for m in network.modules() if isinstance(m, resnet.BasicBlock | resnet.Bottleneck)]
    last = "bn3" if block is resnet.Bottleneck else "bn2"
    for module in blocks:
        module.cbam = OfficialGates(module.get_submodule(last).num_features)
    prepared(network)
    weights = dict(network.state_dict())
    for module in blocks:
        setattr(module, last, BeforeSum(module.get_submodule(last), module))
    return network, weights


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_authors_network(kind: str, tmp_path: Path) -> None:
    original, weights = official(kind)
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    path = tmp_path / "RESNET_CBAM_best.pth.tar"
    torch.save({"epoch": 3, "arch": "resnet", "state_dict": wrapped, "best_prec1": 1.5}, path)
    model = ours(kind)
    report = ran.load_checkpoint(model, path)
    assert_equal_outputs(model, original)
    assert report.source == "cbam"
    assert set(report.loaded) == set(model.state_dict())
    assert [report.left, report.ignored, report.unexpected, report.adapted] == [{}, {}, (), {}]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_timm(kind: str) -> None:
    timm = pytest.importorskip("timm")
    name = kind.removeprefix("cbam_")
    original = timm.create_model(
        name, layers=LAYERS, num_classes=10, block_args={"attn_layer": "cbam"}
    )
    prepared(original)
    model = ours(kind)
    report = ran.load_checkpoint(model, original.state_dict())
    assert_equal_outputs(model, original)
    assert report.source == "timm"
    assert {*report.loaded, *report.adapted} == set(model.state_dict())
    assert {name.rpartition(".cbam.")[2] for name in report.adapted} == {
        "conv.weight",
        "fc1.bias",
        "fc2.bias",
    }
    assert [report.left, report.ignored, report.unexpected] == [{}, {}, ()]
    assert "timm's perceptron has no bias" in str(report)


@pytest.mark.parametrize("kind", ["cbam_resnet18", "cbam_resnet50"])
def test_outputs_are_those_of_pytorchcv(kind: str) -> None:
    cbamresnet = pytest.importorskip(
        "pytorchcv.models.cbamresnet", reason="pytorchcv is not installed: pip install pytorchcv"
    )
    bottleneck = kind == "cbam_resnet50"
    widths = [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)]
    original = cbamresnet.CbamResNet(
        channels=[[width] * count for width, count in zip(widths, LAYERS, strict=True)],
        init_block_channels=64,
        bottleneck=bottleneck,
        num_classes=10,
    )
    original.features.final_pool = nn.AdaptiveAvgPool2d(1)
    prepared(original)
    model = ours(kind)
    report = ran.load_checkpoint(model, original.state_dict())
    assert_equal_outputs(model, original)
    assert report.source == "pytorchcv"
    assert set(report.loaded) == set(model.state_dict())
    assert [report.left, report.ignored, report.unexpected, report.adapted] == [{}, {}, (), {}]


def plain(kind: str, library: str) -> nn.Module:
    if library == "timm":
        timm = pytest.importorskip("timm")
        name = kind.removeprefix("cbam_")
        return prepared(timm.create_model(name, layers=LAYERS, num_classes=10))
    block, options = KINDS[kind]
    return prepared(resnet.ResNet(block, list(LAYERS), num_classes=10, **options))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_weights_leave_cbam_as_it_is(kind: str, library: str) -> None:
    original, model = plain(kind, library), ours(kind)
    # Gates of 1, which show that the rest is the plain network, and that they were left alone.
    inside: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, CBAM):
            nn.init.zeros_(module.norm.weight)
            for part in (module.fc2, module.norm):
                nn.init.constant_(part.get_parameter("bias"), 100)
            inside |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    report = ran.load_checkpoint(model, original.state_dict())
    assert_equal_outputs(model, original)
    assert report.source == "resnet"
    assert set(report.left) == set(inside)
    assert set(report.left.values()) == {"plain weights have no CBAM"}
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in inside.items())


def test_the_swap_of_maps_follows_the_module() -> None:
    model = ours("cbam_resnet18")
    for module in model.modules():
        if isinstance(module, CBAM):
            module.mean_first = True
    original, weights = official("cbam_resnet18")
    report = ran.load_checkpoint(model, weights)
    assert len(report.adapted) == sum(LAYERS)
    assert_equal_outputs(model, original)


def test_strides_in_another_convolution_are_refused() -> None:
    _, weights = official("cbam_resnet50")
    with pytest.raises(UserError, match="stride_in_1x1=False"):
        ran.load_checkpoint(ours("cbam_resnet50", stride_in_1x1=True), weights)


def test_another_networks_weights_are_refused() -> None:
    _, weights = official("cbam_resnet50")
    model = ours("cbam_resnet18")
    with pytest.raises(
        UserError, match=r"36 unexpected: layer1 \(18\), .*; 41 of another shape: .* fc \(1\)$"
    ):
        ran.load_checkpoint(model, weights)
    with pytest.raises(UserError, match=r"expected a residual attention network .*got CbamResNet"):
        ran.load_checkpoint(model, {"attention_module1.trunk_branches.0.w": torch.zeros(1)})
    attention = ran.attention56_cifar()
    with pytest.raises(UserError, match=r"expected a CBAM network .*got ResidualAttentionNetwork"):
        ran.load_checkpoint(attention, weights)
