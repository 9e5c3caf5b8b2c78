"""CUDA graphs of whole networks: inference, and a training step with its optimizer."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran

from .helpers import relative

NETWORKS: dict[str, dict[str, Any]] = {
    "attention56_cifar": {"width_multiplier": 0.5},
    "cbam_resnet18": {},
}
SHAPE = (8, 3, 64, 64)
#: Steps on a side stream before the capture, as PyTorch's documentation has it.
WARM_UP = 3

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("name", NETWORKS)]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ran.create_model(name, num_classes=10, **NETWORKS[name]).cuda()
    return model.to(memory_format=torch.channels_last)


def images(seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(SHAPE, device="cuda", generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


class Training:
    """A network with an optimizer, and the step that a training repeats."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.x, self.y = images(0), torch.arange(SHAPE[0], device="cuda") % 10

    def step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def on_a_side_stream(training: Training, steps: int) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(steps):
            training.step()
    torch.cuda.current_stream().wait_stream(side)


def test_a_training_step(name: str) -> None:
    model = network(name)
    captured, eager = Training(copy.deepcopy(model)), Training(model)
    for training in (captured, eager):
        on_a_side_stream(training, WARM_UP)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured.step()
    for seed in range(1, 4):
        for training in (captured, eager):
            training.x.copy_(images(seed))
        graph.replay()
        want = eager.step()
        torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)
    # cuDNN's backward may add in another order; without the replays nothing would be near.
    want_state = eager.model.state_dict()
    for key, value in captured.model.state_dict().items():
        torch.testing.assert_close(value, want_state[key], rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_inference(name: str) -> None:
    model = network(name).eval()
    x = images(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(x)
    for seed in range(1, 4):
        x.copy_(images(seed))
        graph.replay()
        assert relative(logits.double(), model(x).double()) < 1e-5
