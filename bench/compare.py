"""Times several implementations of one computation in one interleaved run."""

import ctypes
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]

#: Bytes of other tensors between two uses of one: more than the last cache that a core reaches.
ROTATED_BYTES = 2**27

#: Of a result's norm: what rounding may make of it where PyTorch's own is less.
LEAST = {torch.float64: 1e-10, torch.float32: 1e-4}


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Has the C library keep what is freed, as a GPU's allocator does, instead of giving it back.

    Otherwise every fresh result of more than 32 MB, and some smaller ones, costs a page fault every
    4 KB, several times what any operator on it costs.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # From malloc.h: M_MMAP_MAX and M_TRIM_THRESHOLD. musl has no mallopt.
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)
            libc.mallopt(-1, -1)


def rotation(device: str, bytes_of_a_set: int) -> int:
    """How many sets of inputs to take in turn, so that none is found in a processor's cache.

    On a GPU one is enough: the stopwatch flushes its cache. On a processor that would flush the
    code too, which a network finds in the cache.
    """
    return 1 if device == "cuda" else ROTATED_BYTES // bytes_of_a_set + 2


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


class Turns:
    """Times several computations in turn, so that all see the same weather.

    Args:
        runs: by name, the computation on every set of inputs. Each call takes the next set.
        stopwatch: times a call.

    Attributes:
        samples: seconds of every round, by name.
    """

    def __init__(self, runs: Mapping[str, Sequence[Run]], stopwatch: Stopwatch) -> None:
        self.samples: dict[str, list[float]] = {name: [] for name in runs}
        self._runs = runs
        self._stopwatch = stopwatch
        self._calls = itertools.count()

    def next(self, name: str) -> Run:
        """The computation `name` on the set whose turn it is."""
        sets = self._runs[name]
        return sets[next(self._calls) % len(sets)]

    def warm_up(self, calls: int) -> None:
        """Runs all without timing them, `calls` times each."""
        for _ in range(calls):
            for name in self._runs:
                self.next(name)()

    def round(self) -> None:
        """Times all once."""
        for name, samples in self.samples.items():
            samples.append(self._stopwatch(self.next(name)))


def take_turns(runs: Mapping[str, Run], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of each computation, by name, warmed up and all in turn.

    Each on one set of inputs: what a network allocates is larger than any cache.
    """
    turns = Turns({name: [run] for name, run in runs.items()}, Stopwatch(device))
    turns.warm_up(2)
    for _ in range(rounds):
        turns.round()
    return turns.samples


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
    tolerance = LEAST.get(dtype, 3e-2)
    for index, (a, b) in enumerate(zip(_tensors(got), _tensors(want), strict=True)):
        error = relative_error(a, b)
        if not error <= tolerance:
            raise ValueError(f"{name}: result {index} is off by {error:.2g} of its norm")


def require_as_exact(name: str, got: Any, own: Any, exact: Any) -> None:
    """Raises ValueError where results are wrong: what is wrong has no speed.

    In low precision PyTorch itself may be far off: where rounding moves a maximum, a gradient goes
    to another element.

    Args:
        name: of the way that the results were computed in.
        got: the results.
        own: the same as eager PyTorch computes them in the same dtype. `got` may be off three times
            as far, or as far as rounding takes it.
        exact: the same in float64.
    """
    results = zip(_tensors(got), _tensors(own), _tensors(exact), strict=True)
    for index, (a, b, c) in enumerate(results):
        least = LEAST.get(a.dtype, torch.finfo(a.dtype).eps)
        error, allowed = relative_error(a, c), max(least, 3 * relative_error(b, c))
        if not error <= allowed:
            raise ValueError(
                f"{name}: expected result {index} within {allowed:.2g} of its norm, got {error:.2g}"
            )


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference over that of `exact`, or over 1 where that is 0."""
    scale = exact.double().norm().item() or 1.0
    return (got.double() - exact.double()).norm().item() / scale


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result if part is not None for t in _tensors(part)]
