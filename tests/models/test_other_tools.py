"""What other people's tools make of the networks: they exchange and fold layers by their kind."""

import copy
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental.optimization import fuse as fold

import ran
import ran_kernels

from .helpers import randomise, relative, small

CBAM = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "attention": small,
    "additive": lambda **options: small(graph="additive", **options),
    "attentionnext": lambda **options: small(
        unit="resnext", widths=(64, 128), tail_width=128, **options
    ),
    "CBAM basic": lambda **options: ran.create_model("cbam_resnet18", **CBAM, **options),
    "CBAM bottleneck": lambda **options: ran.create_model("cbam_resnet50", **CBAM, **options),
}
TOOLS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's SyncBatchNorm": convert_sync_batchnorm,
    "timm's frozen": freeze_batch_norm_2d,
    "torch.fx folded": fold,
    "torch.ao folded": fuse_fx,
}


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model.eval()(x)
    return list(found) if isinstance(found, list | tuple) else [found]


@pytest.mark.parametrize("features_only", [False, True], ids=["logits", "features"])
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_compute_the_same_after_other_tools(family: str, features_only: bool) -> None:
    options = {"features_only": True} if features_only else {}
    model = randomise(FAMILIES[family](**options)).eval()
    x = torch.randn(2, 3, 40, 44)
    want = outputs(model, x)
    for name, tool in TOOLS.items():
        changed = tool(copy.deepcopy(model))
        for got, expected in zip(outputs(changed, x), want, strict=True):
            assert relative(got, expected) < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_converted_is_deployed_and_takes_weights(family: str) -> None:
    model = randomise(FAMILIES[family]()).eval()
    x = torch.randn(2, 3, 40, 44)
    want = outputs(model, x)[0]
    for name in ("SyncBatchNorm", "timm's frozen"):
        changed = TOOLS[name](copy.deepcopy(model)).eval()
        assert relative(ran.deploy(changed)(x), want) < 1e-5, name
    changed = TOOLS["SyncBatchNorm"](FAMILIES[family]())
    ran.load_checkpoint(changed, model.state_dict())
    assert relative(outputs(changed, x)[0], want) < 1e-6


def test_a_layer_that_is_folded_by_hand_is_deployed() -> None:
    model = randomise(ran.create_model("cbam_resnet18", **CBAM)).eval()
    x = torch.randn(2, 3, 40, 44)
    want = outputs(model, x)[0]
    pairs = [["conv1", "bn1"], ["layer1.0.conv1", "layer1.0.bn1"]]
    folded = torch.ao.quantization.fuse_modules(model, pairs)
    assert type(folded.layer1[0].bn1) is nn.Identity
    assert relative(ran.deploy(folded)(x), want) < 1e-5


def test_the_last_relu_goes_with_its_normalisation() -> None:
    model = small().eval()
    names = set(model.state_dict())
    assert {"norm.weight", "norm.running_var"} <= names
    assert not any(name.startswith("act") for name in names)
    assert (model.forward_features(torch.randn(1, 3, 32, 32)) >= 0).all()
    x = torch.randn(1, 3, 32, 32)
    raw: Any = model.forward_intermediates(x, intermediates_only=True)[-1]
    model.prune_intermediate_layers(prune_norm=True)
    pruned: Any = model.forward_intermediates(x, intermediates_only=True)[-1]
    assert torch.equal(raw, pruned)
    assert (pruned < 0).any()
    assert torch.equal(model.forward_features(x), pruned)


@pytest.mark.parametrize("part", ["norm", "stem.norm", "stages.0.unit.conv2", "stages.0.unit.bn2"])
def test_a_layer_of_another_kind_is_not_deployed(part: str) -> None:
    model = small()
    parent, _, name = part.rpartition(".")
    owner = model.get_submodule(parent)
    layer = getattr(owner, name)

    class Other(type(layer)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs()

    layer.__class__ = Other
    with pytest.raises(TypeError, match=f"expected {type(layer).__mro__[1].__name__}.* got Other"):
        ran.deploy(model)


OURS = ("ran.", "ran_kernels.")


def our_modules() -> Iterator[type[nn.Module]]:
    """Every module class that the two packages define."""
    for package in (ran, ran_kernels):
        for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Libraries are no modules, though their files are called alike.
            if re.search(r"__main__$|\._C$|\.triton|\.libran_", entry.name):
                continue
            for value in vars(importlib.import_module(entry.name)).values():
                module = isinstance(value, type) and issubclass(value, nn.Module)
                if module and value.__module__.startswith(OURS):
                    yield value


#: What says how a layer is made or shown, not what it computes.
NOT_COMPUTING = {"__init__", "__module__", "__doc__", "__annotations__", "extra_repr"}


def test_no_subclass_of_a_layer_of_pytorch_computes_something_else() -> None:
    found = set(our_modules())
    assert len(found) > 20
    for kind in found:
        layers = [
            base
            for base in kind.__mro__
            if base.__module__.startswith("torch.nn.") and base is not nn.Module
        ]
        computing = {name for layer in layers for name in vars(layer)} - NOT_COMPUTING
        for base in kind.__mro__:
            if layers and base.__module__.startswith(OURS):
                assert not computing & {"forward", *vars(base)} & vars(base).keys(), kind
