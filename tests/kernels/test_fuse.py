"""`ran_kernels.fuse` beside the modules it replaces: timm's, the authors' and pytorchcv's."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule, LightCbamModule
from torch import Tensor, nn

import ran_kernels


class ChannelGate(nn.Module):
    """Channel attention with the names of the authors' attention-module repository."""

    def __init__(self, channels: int, ratio: int, pool_types: list[str]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // ratio),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels),
        )
        self.pool_types = pool_types

    def forward(self, x: Tensor) -> Tensor:
        pools: dict[str, Callable[[Tensor], Tensor]] = {
            "avg": lambda x: F.avg_pool2d(x, x.shape[2:]),
            "max": lambda x: F.max_pool2d(x, x.shape[2:]),
            "lse": lambda x: x.flatten(2).logsumexp(2),
        }
        logits = torch.stack([self.mlp(pools[kind](x)) for kind in self.pool_types]).sum(0)
        return x * torch.sigmoid(logits)[:, :, None, None].expand_as(x)


class BasicConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = BasicConv()

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


class CBAM(nn.Module):
    def __init__(
        self,
        channels: int,
        ratio: int = 16,
        pool_types: tuple[str, ...] = ("avg", "max"),
        no_spatial: bool = False,
    ) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels, ratio, list(pool_types))
        self.no_spatial = no_spatial
        if not no_spatial:
            self.SpatialGate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        x = self.ChannelGate(x)
        return x if self.no_spatial else self.SpatialGate(x)


def pytorchcv_block(channels: int) -> nn.Module:
    return pytest.importorskip("pytorchcv.models.cbamresnet").CbamBlock(channels, 4)


MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "timm": lambda channels: CbamModule(channels, rd_ratio=0.25),
    "timm with biases": lambda channels: CbamModule(
        channels, rd_channels=7, spatial_kernel_size=3, mlp_bias=True
    ),
    "authors": lambda channels: CBAM(channels, 4),
    "authors, other order": lambda channels: CBAM(channels, 4, ("max", "avg")),
    "pytorchcv": pytorchcv_block,
}


#: Of those, one of each library.
LIBRARIES = ("timm with biases", "authors", "pytorchcv")


class Net(nn.Module):
    """A convolution, then two CBAM modules at different depths."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.attention = make(12)
        self.body = nn.Sequential(nn.Conv2d(12, 20, 3), nn.ModuleDict({"se": make(20)})["se"])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.attention(self.stem(x)))


def randomised(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return module.double()


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, the input's gradient, and the running statistics, in training then in evaluation."""
    found = []
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        x = x.detach().requires_grad_()
        out = model(x)
        (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum().backward()
        assert x.grad is not None
        found += [out.detach(), x.grad, *(buffer.clone() for buffer in model.buffers())]
        for parameter in model.parameters():
            assert parameter.grad is not None
            found.append(parameter.grad)
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", MAKERS)
def test_fused_equals_the_original(kind: str, device: str) -> None:
    original = randomised(Net(MAKERS[kind])).to(device)
    fused = copy.deepcopy(original)
    report = ran_kernels.fuse(fused)
    assert report.replaced == ["attention", "body.1"]
    assert report.left == {}
    assert isinstance(fused.attention, ran_kernels.nn.CBAM)
    assert isinstance(fused.get_submodule("body.1"), ran_kernels.nn.CBAM)
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64).to(device)
    expected = run(original, x)
    assert len(expected) == 2 * (2 + 6 + len(list(original.parameters())))
    for got, want in zip(run(fused, x), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_optimizer_made_before_goes_on(kind: str) -> None:
    original = randomised(Net(MAKERS[kind]))
    tied = nn.Parameter(torch.ones(12, dtype=torch.float64))
    models = [original, copy.deepcopy(original)]
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD([*model.parameters(), tied], lr=0.1, momentum=0.9)
        calls: list[Tensor] = []
        first = next(p for p in model.get_submodule("attention").parameters() if p.dim() > 1)
        first.register_hook(calls.append)
        first.grad = torch.ones_like(first)
        if fused:
            assert len(ran_kernels.fuse(model).replaced) == 2
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
        assert len(calls) == 3
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.equal(a, torch.zeros_like(a))


def test_weights_saved_before_layers_kept_their_kind_load() -> None:
    model = Net(MAKERS["timm"])
    ran_kernels.fuse(model)
    state = model.state_dict()
    assert state["attention.fc1.weight"].shape == (3, 12, 1, 1)
    flat = {k: v.flatten(1) if ".fc" in k and v.dim() > 1 else v for k, v in state.items()}
    again = Net(MAKERS["timm"])
    ran_kernels.fuse(again)
    again.load_state_dict(flat)
    torch.testing.assert_close(again.state_dict(), state)
    # And into the module that users build themselves, from either shape.
    own = {k.removeprefix("attention."): v for k, v in state.items() if k.startswith("attention.")}
    for mlp_conv in (False, True):
        built = ran_kernels.nn.CBAM(12, 4, mlp_bias=False, mean_first=True, mlp_conv=mlp_conv)
        built.load_state_dict(own)
        x = torch.randn(2, 12, 5, 4)
        torch.testing.assert_close(built(x), model.attention(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        built.load_state_dict({**own, "fc1.weight": own["fc1.weight"][:, :5]})


def test_a_whole_network_of_timm() -> None:
    import timm

    torch.manual_seed(0)
    original = timm.create_model("resnet18", block_args={"attn_layer": "cbam"}, num_classes=3)
    randomised(original).eval()
    fused = copy.deepcopy(original)
    assert len(ran_kernels.fuse(fused).replaced) == 8
    x = torch.randn(1, 3, 40, 33, dtype=torch.float64)
    torch.testing.assert_close(fused(x), original(x))


@pytest.mark.parametrize("kind", LIBRARIES)
def test_modes_flags_and_settings_stay(kind: str) -> None:
    model = Net(MAKERS[kind]).to(torch.bfloat16)
    model.attention.eval()
    for parameter in model.attention.parameters():
        parameter.requires_grad_(False)
    (norm,) = (part for part in model.attention.modules() if isinstance(part, nn.BatchNorm2d))
    norm.eps, norm.momentum = 0.5, 0.25
    held = {id(p) for p in model.parameters()}
    assert ran_kernels.fuse(model).left == {}
    fused = model.attention
    assert isinstance(fused, ran_kernels.nn.CBAM)
    assert not any(part.training for part in fused.modules())
    assert model.body.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert {p.requires_grad for p in model.body.parameters()} == {True}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (fused.norm.eps, fused.norm.momentum) == (0.5, 0.25)
    # The parameters are those they were, so nothing else that holds them is cut off.
    assert {id(p) for p in model.parameters()} == held


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_frozen_norm_stays_frozen(kind: str) -> None:
    model = Net(MAKERS[kind]).train()
    (norm,) = (part for part in model.attention.modules() if isinstance(part, nn.BatchNorm2d))
    norm.eval()
    original, x = copy.deepcopy(model), torch.randn(2, 3, 9, 9)
    assert ran_kernels.fuse(model).left == {}
    fused = model.attention
    assert isinstance(fused, ran_kernels.nn.CBAM)
    assert (fused.training, fused.fc1.training, fused.norm.training) == (True, True, False)
    torch.testing.assert_close(model(x), original(x))


def test_fusing_draws_no_random_number_and_leaves_statistics() -> None:
    model = Net(MAKERS["timm"])
    before = torch.get_rng_state()
    statistics = [buffer.clone() for buffer in model.buffers()]
    ran_kernels.fuse(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(list(model.buffers()), statistics, rtol=0, atol=0)


def test_a_module_in_two_places_stays_one() -> None:
    shared = CbamModule(8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert ran_kernels.fuse(model).replaced == ["a", "b.0"]
    assert model["a"] is model.get_submodule("b.0")


def test_fuses_on_the_meta_device_and_only_once() -> None:
    with torch.device("meta"):
        model = Net(MAKERS["timm"])
    assert len(ran_kernels.fuse(model).replaced) == 2
    assert all(parameter.is_meta for parameter in model.parameters())
    assert ran_kernels.fuse(model) == ran_kernels.FuseReport()


class OtherOrder(CBAM):
    def forward(self, x: Tensor) -> Tensor:
        return self.ChannelGate(self.SpatialGate(x))


OtherOrder.__name__ = "CBAM"


def other(make: Callable[[], nn.Module], change: Callable[[Any], object]) -> nn.Module:
    module = make()
    change(module)
    return module


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "light": (lambda: LightCbamModule(8), "light variant"),
    "lse": (lambda: CBAM(8, 4, ("avg", "lse")), "pools by avg, lse"),
    "one pool": (lambda: CBAM(8, 4, ("avg",)), "pools by avg, not"),
    "channel only": (lambda: CBAM(8, 4, no_spatial=True), "no spatial attention"),
    "other order": (lambda: OtherOrder(8, 4), "something else"),
    "activation": (lambda: CbamModule(8, act_layer=nn.SiLU), "has SiLU where CBAM has ReLU"),
    "gate": (lambda: CbamModule(8, gate_layer="hard_sigmoid"), "its forward calls hardsigmoid"),
    "class of this name": (lambda: type("CBAM", (nn.Module,), {})(), "built unlike"),
    "hook": (
        lambda: other(
            lambda: CbamModule(8), lambda m: m.spatial.register_forward_hook(lambda *_: None)
        ),
        "spatial has hooks",
    ),
    "bias": (
        lambda: other(
            lambda: CBAM(8, 4),
            lambda m: setattr(m.SpatialGate.spatial, "conv", nn.Conv2d(2, 1, 7, padding=3)),
        ),
        "convolution has a bias",
    ),
    "dilation": (
        lambda: other(
            lambda: CBAM(8, 4),
            lambda m: setattr(
                m.SpatialGate.spatial,
                "conv",
                nn.Conv2d(2, 1, 7, padding=6, dilation=2, bias=False),
            ),
        ),
        "another stride, padding or dilation",
    ),
    "normalisation": (
        lambda: other(
            lambda: CBAM(8, 4), lambda m: setattr(m.SpatialGate.spatial, "bn", nn.Identity())
        ),
        "has Identity where CBAM has BatchNorm2d",
    ),
    "parametrisation": (
        lambda: other(
            lambda: CBAM(8, 4),
            lambda m: torch.nn.utils.parametrizations.weight_norm(m.ChannelGate.mlp[1]),
        ),
        "ParametrizedLinear where CBAM has",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_unusual_stays_with_a_reason(kind: str) -> None:
    make, reason = LEFT[kind]
    model = nn.Sequential(make(), CbamModule(8))
    unusual = model[0]
    report = ran_kernels.fuse(model)
    assert model[0] is unusual
    assert report.replaced == ["1"]
    assert [*report.left] == ["0"]
    assert reason in report.left["0"]
    assert str(report).splitlines() == [
        "1 CBAM modules replaced, 1 left",
        "  replaced 1",
        f"  left 0: {report.left['0']}",
    ]


def test_the_whole_model_cannot_be_replaced() -> None:
    report = ran_kernels.fuse(CbamModule(8))
    assert report.left == {"": "it is the whole model: nothing holds it"}
    assert "left (the model): it is" in str(report)
    with pytest.raises(TypeError, match="model: expected a module, got str"):
        ran_kernels.fuse("resnet")  # type: ignore[arg-type]


def test_other_libraries_are_not_imported() -> None:
    import subprocess
    import sys

    code = "import ran_kernels, sys; print({'timm', 'pytorchcv'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
