"""ResNets with CBAM: counts, the function they compute, their gates."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran
from ran.models.cbam_registry import CBAM_PLANS
from ran.models.cbam_resnet import CbamBasicBlock, CbamBottleneck
from ran_kernels.nn import CBAM
from tests.models.helpers import gradients, randomise, relative

#: Parameters, and billions of multiply-adds with the stride in the first 1×1 and in the 3×3.
COUNTS = {
    "cbam_resnet18": (11_779_392, 1.815, 1.815),
    "cbam_resnet34": (21_960_468, 3.665, 3.665),
    "cbam_resnet50": (28_089_624, 3.864, 4.096),
    "cbam_resnet101": (49_330_172, 7.581, 7.813),
    "cbam_wide_resnet18_1_5": (26_075_516, 3.868, 3.868),
    "cbam_wide_resnet18_2": (45_971_256, 6.697, 6.697),
    "cbam_resnext50_32x4d": (27_561_496, 3.774, 4.237),
    "cbam_resnext101_32x4d": (48_958_716, 7.519, 7.981),
}
BOTTLENECK = {"block": "bottleneck", "layers": (1, 1, 2, 1), "channels": (16, 16, 16, 16)}
#: A small network of each kind of block.
PLANS: dict[str, dict[str, Any]] = {
    "basic": {"block": "basic", "layers": (2, 1, 1, 1), "channels": (16, 32, 32, 48)},
    "bottleneck": BOTTLENECK,
    "stride in 1x1": {**BOTTLENECK, "stride_in_1x1": True},
    "grouped": {**BOTTLENECK, "channels": (32, 32, 32, 64), "cardinality": 4, "base_width": 8},
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def small(plan: dict[str, Any] = PLANS["basic"], **options: Any) -> ran.CbamResNet:
    return randomise(ran.CbamResNet(**{"num_classes": 5, "reduction": 4, **plan, **options}))


def test_all_are_listed() -> None:
    assert COUNTS.keys() == CBAM_PLANS.keys() <= set(ran.list_models())


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    parameters, *billions = COUNTS[name]
    for stride_in_1x1, expected in zip((True, False), billions, strict=True):
        with torch.device("meta"):
            model = ran.create_model(name, stride_in_1x1=stride_in_1x1)
        assert ran.count_parameters(model) == parameters
        assert round(ran.count_multiply_adds(model) / 1e9, 3) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        plain = getattr(torchvision.models, name)()
        model = ran.create_model(f"cbam_{name}")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    attention = {name for name in shapes if ".cbam." in name}
    assert attention
    assert {name: shape for name, shape in shapes.items() if name not in attention} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }


def cbam(module: CBAM, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two gates by the paper's formulas, on the module's layers."""

    def mlp(pooled: Tensor) -> Tensor:
        return module.fc2(module.fc1(pooled).clamp(min=0))

    channel = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
    maps = torch.cat([(channel * x).amax(1, True), (channel * x).mean(1, True)], dim=1)
    return channel, torch.sigmoid(module.norm(module.conv(maps)))


def composed(model: ran.CbamResNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gates of the network in plain PyTorch, from its own layers."""
    gates: dict[str, Tensor] = {}
    x = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 3, 2, padding=1)
    for name, block in model.named_modules():
        if not isinstance(block, CbamBasicBlock | CbamBottleneck):
            continue
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        if isinstance(block, CbamBottleneck):
            y = block.bn3(block.conv3(F.relu(y)))
        channel, spatial = cbam(block.cbam, y)
        gates |= {f"{name}.cbam.channel": channel, f"{name}.cbam.spatial": spatial}
        shortcut = x if block.downsample is None else block.downsample(x)
        x = F.relu(y * channel * spatial + shortcut)
    return model.fc(x.mean((2, 3))), gates


@every_plan
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (41, 26)])
def test_outputs_and_gates_of_the_plain_composition(
    plan: dict[str, Any], training: bool, size: tuple[int, int]
) -> None:
    model = small(plan).double().train(training)
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    expected, gates = composed(model, x)
    assert relative(model(x), expected) < 1e-10
    if not training:
        torch.testing.assert_close(model.attention_masks(x), gates)


def test_blocks_stride_where_they_are_told() -> None:
    for in_1x1 in (False, True):
        with torch.device("meta"):
            model = ran.cbam_resnet50(stride_in_1x1=in_1x1)
        first = model.get_submodule("layer2.0")
        assert isinstance(first, CbamBottleneck)
        strides = first.conv1.stride[0], first.conv2.stride[0]
        assert strides == ((2, 1) if in_1x1 else (1, 2))


def test_grouped_convolutions() -> None:
    with torch.device("meta"):
        model = ran.cbam_resnext50_32x4d()
    weights = {name: tuple(w.shape) for name, w in model.named_parameters() if "0.conv2" in name}
    assert weights["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert weights["layer4.0.conv2.weight"] == (1024, 32, 3, 3)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("size", [(224, 224), (320, 320), (448, 448), (193, 225), (32, 32)])
def test_sizes(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = ran.create_model(name, num_classes=7, layers=(1, 1, 1, 1)).eval()
        assert model(torch.empty(1, 3, *size)).shape == (1, 7)


def test_the_smallest_size() -> None:
    model = small().eval()
    assert model(torch.randn(1, 3, 1, 1)).shape == (1, 5)
    for shape in ((1, 3, 0, 5), (1, 1, 9, 9), (3, 9, 9)):
        for call in (model, model.forward_intermediates, model.attention_masks):
            with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, H, W\)"):
                cast(Any, call)(torch.zeros(shape))


@every_plan
def test_every_parameter_gets_a_gradient(plan: dict[str, Any]) -> None:
    found = gradients(small(plan), torch.randn(4, 3, 40, 40))
    assert [name for name, gradient in found.items() if not gradient.any()] == []


def test_initialisation_leaves_cbam_its_own_start() -> None:
    torch.manual_seed(0)
    model = ran.CbamResNet(**PLANS["bottleneck"])
    for name, module in model.named_modules():
        if isinstance(module, CBAM):
            assert not module.norm.weight.any()
            # Uniform to 1/sqrt(fan-in), where He's normal would reach beyond.
            assert module.conv.weight.abs().max() < 98**-0.5
        elif isinstance(module, nn.BatchNorm2d) and ".cbam." not in name:
            assert (module.weight == 1).all()
    deviation = model.get_parameter("conv1.weight").std().item()
    assert deviation == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)
    model.init_weights(zero_init_last=True)
    assert not model.get_parameter("layer3.1.bn3.weight").any()


def test_gates_leave_the_network_as_it_was() -> None:
    model = small()
    frozen = model.get_submodule("layer1").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    gates = model.attention_masks(x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training
    assert not any(module.training for module in frozen.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert {name: tuple(gate.shape) for name, gate in gates.items() if "layer1.1" in name} == {
        "layer1.1.cbam.channel": (2, 16, 1, 1),
        "layer1.1.cbam.spatial": (2, 1, 8, 8),
    }
    assert len(gates) == 10
    for gate in gates.values():
        assert not gate.requires_grad
        assert gate.min() >= 0
        assert gate.max() <= 1


def test_state_dict_round_trip() -> None:
    model, other = small().eval(), small().eval()
    x = torch.randn(1, 3, 32, 32)
    assert relative(other(x), model(x)) > 0.1
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strid_in_1x1": True}, "option: .* got 'strid_in_1x1'; did you mean 'stride_in_1x1'"),
        ({"activation": "mixed"}, "option: expected one of .* got 'activation'"),
        ({"block": "wide"}, "block: expected one of 'basic', 'bottleneck', got 'wide'"),
        ({"layers": (1, 1)}, r"layers: expected four integers .* got \(1, 1\)"),
        ({"channels": (64, 0, 64, 64)}, "channels: expected four integers"),
        ({"cardinality": 2}, "cardinality: expected 1 for basic blocks, got 2"),
        ({"base_width": 4}, "base_width: expected 64 for basic blocks, got 4"),
        ({"reduction": 0}, "reduction: expected an integer of at least 1, got 0"),
        ({"reduction": 128}, "channels: expected at least reduction=128, got 64"),
        ({"stride_in_1x1": 3}, "stride_in_1x1: expected one of False, True, got 3"),
        ({"num_classes": -1}, "num_classes: expected an integer of at least 0 .* got -1"),
        ({"in_chans": 0}, "in_chans: expected an integer of at least 1, got 0"),
        ({"drop_rate": 2}, "drop_rate: expected a probability, got 2"),
        ({"global_pool": "max"}, "global_pool: expected one of 'avg', '', got 'max'"),
        ({"pretrained": True}, "pretrained: expected False, as cbam_resnet18 has no weights"),
    ],
)
def test_values_that_cannot_be_built_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ran.create_model("cbam_resnet18", **options)
