"""The same bits every run, whatever the number of threads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ran_kernels
from ran_kernels.nn import CBAM

from .cbam_cases import NATIVE_LAYOUTS, channel_logits, features, spatial_logits
from .harness import LAYOUTS, outputs_and_grads

RUNS = 50
# Enough for several threads, and sizes that 2, 3 and 5 do not divide.
SHAPE = (3, 67, 23, 29)


def cbam(x: Tensor, shortcut: Tensor) -> Tensor:
    torch.manual_seed(0)
    block = CBAM(x.shape[1]).to(x)
    torch.nn.init.ones_(block.norm.weight)
    return block(x, shortcut, relu=True)


def gate(activation: str) -> Callable[[Tensor], list[Any]]:
    def make(x: Tensor) -> list[Any]:
        return [
            lambda a, b: ran_kernels.attention_gate(a, b, activation=activation),
            x.flip(0).clone(memory_format=torch.preserve_format),
            x,
        ]

    return make


#: From x, an operator and its inputs.
CALLS: dict[str, Callable[[Tensor], list[Any]]] = {
    "attention_gate": gate("mixed"),
    "attention_gate_channel": gate("channel"),
    "attention_gate_spatial": gate("spatial"),
    "upsample_add": lambda x: [ran_kernels.upsample_add, x[:, :, ::2, ::2].clone(), x],
    "channel_pool": lambda x: [ran_kernels.channel_pool, x],
    "spatial_pool": lambda x: [ran_kernels.spatial_pool, x, channel_logits(x)],
    "cbam_gate": lambda x: [ran_kernels.cbam_gate, x, channel_logits(x), spatial_logits(x)],
    "CBAM": lambda x: [cbam, x, x.flip(0)],
    "add_affine_relu": lambda x: [
        ran_kernels.add_affine_relu,
        *(x, x.flip(0), channel_logits(x)[0], channel_logits(x)[1]),
    ],
}
#: Those without a derivative.
INFERENCE = ("add_affine_relu",)


def results(name: str, op: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Everything the operator computes: its outputs, and gradients where it has them."""
    if name in INFERENCE:
        return list(op(*inputs))
    return [t for part in outputs_and_grads(op, inputs) for t in part]


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fifty_runs(name: str, layout: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The convolution between CBAM's operators is cuDNN's, which adds in any order unless told.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(False)  # without poison: this is about time, not memory
    op, *inputs = CALLS[name](features(SHAPE, device=device, layout=layout))
    inputs = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in inputs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ran_kernels.backend("native"):
            first = results(name, op, inputs)
            for run in range(RUNS):
                torch.set_num_threads((2, 3, 5, 1, 4)[run % 5])
                again = results(name, op, inputs)
                for a, b in zip(first, again, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
