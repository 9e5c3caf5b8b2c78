"""Inference and training steps of our networks, against the same in plain PyTorch and compiled.

    python -m bench.networks.speed --network attention92 --batch 8 --result speed.json

"plain" runs every operator of the network as its reference, which is what PyTorch alone would do;
"plain contiguous" does so in the layout that the older implementations use. Every round runs each
variant once, so that all see the same weather. A training step is forward, loss, backward and a
step of SGD with Nesterov's momentum.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.autograd.profiler_util import EventList

import ran
import ran_kernels
from bench.compare import (
    Stopwatch,
    Turns,
    default_device,
    keep_freed_memory,
    peak_memory,
    require_close,
)

from .memory import training_step
from .results import content, write
from .tables import speed

NETWORKS = ("attention56", "attention92", "cbam_resnet50", "cbam_resnext50_32x4d")
DIRECTIONS = ("inference", "training step")


@dataclass(frozen=True)
class Variant:
    """A way to run a network.

    Attributes:
        backend: of ``ran_kernels.backend``.
        channels_last: the layout of weights and images.
        mode: of ``torch.compile``, or None to run eagerly.
    """

    backend: str
    channels_last: bool = True
    mode: str | None = None


VARIANTS = {
    "plain contiguous": Variant("reference", channels_last=False),
    "plain": Variant("reference"),
    "plain compiled": Variant("reference", mode="default"),
    "plain max-autotune": Variant("reference", mode="max-autotune"),
    "ours": Variant("auto"),
    "ours compiled": Variant("auto", mode="default"),
}
#: Tuning takes minutes a network, and on a CPU it times only what oneDNN does already.
ONLY_ON_A_GPU = ("plain max-autotune",)


class Prepared:
    """A variant of a network, ready to run.

    Attributes:
        first: what the first call returned.
        compile_seconds: of the first call, less the second; 0 for an eager variant.
    """

    def __init__(self, model: nn.Module, variant: Variant, x: Tensor, y: Tensor, training: bool):
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.model = copy.deepcopy(model).to(memory_format=layout).train(training)
        self._x, self._y = x.contiguous(memory_format=layout), y
        self._variant = variant
        self._training = training
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-3, momentum=0.9, nesterov=True
        )
        self._run: Callable[..., Tensor] = self.model
        # Freezing is for inference on a CPU: it folds constants and packs weights for oneDNN.
        self._freezing = not training and x.device.type == "cpu"
        if variant.mode:
            self._run = torch.compile(self.model, mode=variant.mode)
        start = time.perf_counter()
        self.first = self._finished()
        middle = time.perf_counter()
        self._finished()
        seconds = (middle - start) - (time.perf_counter() - middle)
        self.compile_seconds = max(0.0, seconds) if variant.mode else 0.0

    @contextmanager
    def _settings(self) -> Iterator[None]:
        frozen = torch._inductor.config.patch(freezing=self._freezing)
        low = torch.autocast(self._x.device.type, torch.bfloat16, enabled=_low(self._x))
        with ran_kernels.backend(self._variant.backend), frozen, low:
            yield

    def __call__(self) -> Tensor:
        """The loss of a training step, or the logits of an inference."""
        with self._settings():
            if not self._training:
                with torch.no_grad():
                    return self._run(self._x)
        # Autocast covers the forward pass and the loss, as PyTorch advises; `training_step` does
        # the backward in it too, which changes nothing: its operators' dtypes are fixed by then.
        with self._settings():
            loss = training_step(self._run, self._x, self._y)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _finished(self) -> Tensor:
        result = self()
        if self._x.is_cuda:
            torch.cuda.synchronize()
        return result


def _low(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def compare(
    network: str,
    direction: str,
    batch: int,
    size: int,
    dtype: torch.dtype,
    device: str,
    rounds: int,
    variants: Sequence[str],
) -> dict[str, Any]:
    """One entry of a result file. Raises ValueError where a variant computes something else."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    training = direction == "training step"
    model = ran.create_model(network).to(device)
    # Weights stay in float32 under autocast; inference has them in bfloat16 as well.
    x = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
    if dtype == torch.bfloat16 and not training:
        model = model.to(dtype)
    y = torch.arange(batch, device=device) % 1000
    prepared = {name: Prepared(model, VARIANTS[name], x, y, training) for name in variants}
    for name, variant in prepared.items():
        require_close(name, variant.first, prepared["plain"].first, dtype)
    turns = Turns({name: [run] for name, run in prepared.items()}, Stopwatch(device))
    turns.warm_up(2)
    for _ in range(rounds):
        turns.round()
    result = {
        "network": network,
        "direction": direction,
        "batch": batch,
        "size": [size, size],
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "samples": turns.samples,
        "compile_seconds": {name: run.compile_seconds for name, run in prepared.items()},
        "peak_bytes": {name: peak_memory(run, device) for name, run in prepared.items()},
        "operations": {name: operations(run, device) for name, run in prepared.items()},
    }
    return result


def operations(run: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """Where the time of a call goes: the kinds of operation that take most, and all the others.

    Each is a dict with "name", "calls" and "ms", its own time without what it calls.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if device == "cuda":
            torch.cuda.synchronize()
    averages: EventList = profile.key_averages()
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = sorted(averages, key=lambda event: -getattr(event, own))
    rows = [
        {"name": event.key, "calls": event.count, "ms": getattr(event, own) / 1e3}
        for event in found
    ]
    rest = rows[20:]
    others = {
        "name": "others",
        "calls": sum(row["calls"] for row in rest),
        "ms": sum(row["ms"] for row in rest),
    }
    return [*rows[:20], others]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.speed")
    parser.add_argument("--network", action="append", help="repeatable; by default four")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="repeatable")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable")
    parser.add_argument("--batch", type=int, help="images, by default 4 on a CPU, 128 on a GPU")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write, again after each network")
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    batch = given.batch or (128 if device == "cuda" else 4)
    variants = given.variant or [v for v in VARIANTS if device == "cuda" or v not in ONLY_ON_A_GPU]
    if missing := {"plain", "ours"} - set(variants):
        parser.error(f"--variant: expected {' and '.join(sorted(missing))} among them")
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    for network in given.network or NETWORKS:
        for direction in given.direction or DIRECTIONS:
            entry = partial(compare, network, direction, batch, given.size)
            dtype = getattr(torch, given.dtype)
            results.append(entry(dtype, device, given.rounds, variants))
            if given.result:
                write(given.result, "network speed", results)
    print(speed(content("network speed", results)))


if __name__ == "__main__":
    main()
