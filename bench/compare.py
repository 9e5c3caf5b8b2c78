"""Times several implementations of one computation in one interleaved run."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]


@dataclass
class Timings:
    """Seconds of every round, by the name of what ran."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.samples.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])


class Stopwatch:
    """Times one call on a device: with events on a GPU, whose L2 cache is flushed before."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.flush: Tensor | None = None
        if device == "cuda":
            self.flush = torch.empty(2**28, dtype=torch.uint8, device=device)

    def __call__(self, run: Run) -> float:
        if self.flush is None:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def measure(runs: dict[str, Run], stopwatch: Stopwatch, rounds: int, warmup: int) -> Timings:
    """Runs each of `runs` once a round, one after the other, so that all see the same weather."""
    timings = Timings()
    for index in range(warmup + rounds):
        for name, run in runs.items():
            seconds = stopwatch(run)
            if index >= warmup:
                timings.add(name, seconds)
    return timings


def peak_memory(run: Run, device: str) -> int:
    """Bytes allocated at the worst moment of run(), over what was allocated before."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # PyTorch keeps no peak for the CPU, but its profiler sees every allocation.
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


def require_close(name: str, got: Any, want: Any, dtype: torch.dtype) -> None:
    """Raises ValueError where results disagree: what is wrong has no speed."""
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)
    pairs = zip(_tensors(got), _tensors(want), strict=True)
    for index, (a, b) in enumerate(pairs):
        scale = b.double().norm().item() or 1.0
        error = (a.double() - b.double()).norm().item() / scale
        if not error <= tolerance:
            raise ValueError(f"{name}: result {index} is off by {error:.2g} of its norm")


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in _tensors(part)]
