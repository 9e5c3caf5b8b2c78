"""A training step of small networks on emulated CUDA kernels gives what the reference gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ran
import ran_kernels

from . import build
from .place import emulated, emulator

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: ran.create_model(
        "attention56_cifar", num_classes=4, width_multiplier=0.125
    ),
    "cbam": lambda: ran.create_model("cbam_resnet18", num_classes=4, channels=(16,) * 4),
}
KERNELS = {
    "attention": ("attention_gate_kernel", "upsample", "attention_gate_backward_kernel"),
    "cbam": ("ChannelPoolOp", "SpatialPoolOp", "CbamGateOp", "CbamGradXOp"),
}


def step(model: nn.Module, x: Tensor, backend: str) -> list[Tensor]:
    """The logits and all gradients."""
    model.zero_grad()
    with ran_kernels.backend(backend):
        logits = model(x)
        nn.functional.cross_entropy(logits, torch.arange(len(x)) % 4).backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *grads]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step(name: str, layout: str) -> None:
    model = NETWORKS[name]().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    if layout == "channels_last":
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    expected = step(model, x, "reference")
    with emulated():
        got = step(model, x, "native")
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= 1e-9 * max(b.norm().item(), 1e-6)
    entered = " ".join(emulator().entered())
    for kernel in KERNELS[name]:
        assert kernel in entered
