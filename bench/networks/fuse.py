"""What ``ran_kernels.fuse`` gains in somebody's network: timm's with CBAM, before and after.

    python -m bench.networks.fuse --network resnet50 --batch 8 --result fuse.json

With ``--norms`` it is timm's network as it is, channels_last, and its normalisations are fused.
Every round runs each of the four once, so that all see the same weather.
"""

import argparse
import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

import ran_kernels
from bench.compare import Run, default_device, peak_memory, require_close, take_turns
from bench.results_file import report as finish

from . import tables
from .memory import training_step

DIRECTIONS = ("inference", "training step")


def _infer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    training_step(model, x, y)


def compare(
    network: str,
    batch: int,
    size: int,
    device: str,
    rounds: int,
    norms: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """An entry of a result file for each direction.

    Args:
        network: a name of timm's, which gets its CBAM, or stays without where `norms` are fused.
        options: further arguments of ``timm.create_model``.

    Raises ValueError where nothing is fused, or the fused network computes something else.
    """
    torch.manual_seed(0)
    # Branches that start at zero would give CBAM zeros to work on.
    cbam = {} if norms else {"block_args": {"attn_layer": "cbam"}}
    layout = torch.channels_last if norms else torch.contiguous_format
    before: Any = timm.create_model(network, **{**cbam, "zero_init_last": False, **options})
    before = before.to(device, memory_format=layout).eval()
    after = copy.deepcopy(before)
    report = ran_kernels.fuse(after, norms=norms)
    if report.left or not (report.norms if norms else report.replaced):
        kind = "normalisations" if norms else "CBAM modules"
        raise ValueError(f"{network}: expected {kind} to fuse, got: {report}")
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    y = torch.arange(batch, device=device) % before.num_classes
    require_close("fused", _infer(after, x[:2]), _infer(before, x[:2]), x.dtype)

    results = []
    models = {"timm": before, "fused": after}
    for direction in DIRECTIONS:
        runs: dict[str, Run] = {}
        training = direction == "training step"
        for name, model in models.items():
            model.train(training)
            runs[name] = partial(_train, model, x, y) if training else partial(_infer, model, x)
        samples = take_turns(runs, device, rounds)
        results.append(
            {
                "network": network,
                "replaced": len(report.replaced),
                "norms": sum(map(len, report.norms.values())),
                "direction": direction,
                "batch": batch,
                "size": [size, size],
                "dtype": "float32",
                "device": device,
                "samples": samples,
                "median": {name: median(times) for name, times in samples.items()},
                "peak_bytes": {name: peak_memory(run, device) for name, run in runs.items()},
            }
        )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.fuse")
    parser.add_argument("--network", default="resnet50", help="a residual network of timm's")
    parser.add_argument("--batch", type=int, help="images, by default 8 on a CPU and 64 on a GPU")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--norms", action="store_true", help="fuse normalisations, without CBAM")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    batch = given.batch or (64 if device == "cuda" else 8)
    results = compare(given.network, batch, given.size, device, given.rounds, given.norms)
    finish("network fuse", results, tables.fused, given.result)


if __name__ == "__main__":
    main()
