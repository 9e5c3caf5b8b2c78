"""Networks that the tests of `ran.deploy` deploy, and what they should give."""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

import ran
import ran_kernels
from tests.models.helpers import small

CBAM: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}


#: A small network of one attention module a stage, for Triton's interpreter.
SHALLOW: dict[str, Any] = {"modules": (1, 1), "mask_depths": (1, 0), "tail_units": 0}


def timm_cbam(**options: Any) -> nn.Module:
    """A ResNet of timm's with every kind of shortcut, its CBAM fused."""
    model = timm.create_model(
        "resnet26", channels=(16, 16, 32, 32), block_args={"attn_layer": "cbam"}, **options
    )
    for name, part in model.named_modules():
        if name.endswith("conv.bn"):  # timm starts it where spatial attention is a constant
            nn.init.ones_(part.weight)
    assert not ran_kernels.fuse(model).left
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "authors": small,
    "additive": lambda: small(graph="additive"),
    "channel": lambda: small(activation="channel", residual=False),
    "spatial, no units behind": lambda: small(activation="spatial", post_units=0),
    "no tail, more units": lambda: small(tail_units=0, t=3, p=2, r=2),
    "resnext": lambda: small(unit="resnext", widths=(64, 128), tail_width=128),
    "features": lambda: small(num_classes=0, global_pool=""),
    "CBAM basic": lambda: ran.create_model("cbam_resnet18", **CBAM),
    "CBAM bottleneck": lambda: ran.create_model("cbam_resnet50", **CBAM, stride_in_1x1=True),
    "CBAM grouped": lambda: ran.CbamResNet(**CBAM, cardinality=4),
    "timm": timm_cbam,
    "timm, deep stem, pooled shortcuts": lambda: timm_cbam(
        stem_type="deep", stem_width=8, avg_down=True
    ),
}


def shaped(model: nn.Module) -> nn.Module:
    """The model with random weights and statistics, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
    return model.eval()


def images(batch: int = 2, size: int = 40) -> Tensor:
    return torch.randn(batch, 3, size, size + 9)


@torch.no_grad()
def exact(model: nn.Module, x: Tensor) -> Tensor:
    """The network's output in float64, by plain PyTorch."""
    with ran_kernels.backend("reference"):
        return copy.deepcopy(model).double()(x.double())
