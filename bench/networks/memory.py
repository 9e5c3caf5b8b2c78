"""Peak memory of a training step: of a network, of the same in plain PyTorch, with checkpointing.

    python -m bench.networks.memory --network attention56 --batch 8 --result memory.json

"plain" runs every operator of the network as its reference, which is what PyTorch alone would do.
The peak is what forward, loss and backward allocate at their worst moment over what was there
before: activations and gradients, but neither parameters nor images.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import default_device, peak_memory, require_close
from bench.results_file import report as finish

from . import tables

NETWORKS = ("attention56", "attention92", "cbam_resnet50")
#: The backend and what is recomputed, by what the results call it.
VARIANTS: dict[str, tuple[str, bool | str]] = {
    "plain": ("reference", False),
    "ours": ("auto", False),
    "ours norms": ("auto", "norms"),
    "plain checkpointed": ("reference", True),
    "ours checkpointed": ("auto", True),
}


@contextmanager
def _variant(model: nn.Module, name: str) -> Iterator[None]:
    backend, checkpointing = VARIANTS[name]
    model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
    with ran_kernels.backend(backend):
        yield
    model.set_grad_checkpointing(False)  # type: ignore[operator]


def training_step(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Forward, loss and backward, which leaves gradients. Returns the loss."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def peaks(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Peak bytes of a training step on images x and classes y, by the names of ``VARIANTS``.

    Raises ValueError where a variant computes something else.
    """
    _require_equal_variants(model, x[:2])
    found: dict[str, int] = {}
    for name in VARIANTS:
        with _variant(model.train(), name):
            # The first step allocates what stays, such as workspaces.
            training_step(model, x[:2], y[:2])
            model.zero_grad()
            found[name] = peak_memory(partial(training_step, model, x, y), x.device.type)
            model.zero_grad()
    return found


def _require_equal_variants(model: nn.Module, x: Tensor) -> None:
    # In evaluation mode: over a few values, batch normalisation makes much of rounding errors.
    logits = {}
    for name in VARIANTS:
        with _variant(model.eval(), name):
            logits[name] = model(x).detach()
        require_close(name, logits[name], logits["plain"], x.dtype)


def measure(network: str, batch: int, size: int | None, device: str) -> dict[str, Any]:
    """One entry of a result file."""
    torch.manual_seed(0)
    model: Any = ran.create_model(network).to(device).train()
    channels, side, _ = model.pretrained_cfg["input_size"]
    side = size or side
    x = torch.randn(batch, channels, side, side, device=device)
    y = torch.arange(batch, device=device) % model.num_classes
    return {
        "network": network,
        "parameters": ran.count_parameters(model),
        "batch": batch,
        "size": [side, side],
        "dtype": "float32",
        "device": device,
        "peak_bytes": peaks(model, x, y),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.memory")
    parser.add_argument("--network", action="append", help="repeatable; by default a few")
    parser.add_argument("--batch", type=int, help="images, by default 4 on a CPU and 64 on a GPU")
    parser.add_argument("--size", type=int, help="height and width, by default the network's own")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    batch = given.batch or (64 if device == "cuda" else 4)
    results = [measure(name, batch, given.size, device) for name in given.network or NETWORKS]
    finish("network memory", results, tables.memory, given.result)


if __name__ == "__main__":
    main()
