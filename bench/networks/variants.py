"""Ways to run one network, made ready one after the other and timed in turn."""

import copy
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import ran_kernels
from bench.compare import peak_memory, take_turns
from ran.models.modes import set_norm_conv

from .profiles import Generated, profile


@dataclass(frozen=True)
class Variant:
    """A way to run a network.

    Attributes:
        backend: of ``ran_kernels.backend``.
        channels_last: the layout of weights and images.
        mode: of ``torch.compile``, or None to run eagerly.
        norm_conv: whether 1×1 convolutions take the norms before them in.
        recomputed: what is computed again in the backward, of ``set_grad_checkpointing``.
    """

    backend: str
    channels_last: bool = True
    mode: str | None = None
    norm_conv: bool = False
    recomputed: bool | str = False

    def of(self, model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
        """A copy of the model, to be compiled by its first call if asked for, and images for it."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = copy.deepcopy(model).to(memory_format=layout)
        set_norm_conv(model, self.norm_conv or None)
        if self.recomputed:
            model.set_grad_checkpointing(self.recomputed)  # type: ignore[operator]
        run = torch.compile(model, mode=self.mode) if self.mode else model
        return run, x.contiguous(memory_format=layout)

    @contextmanager
    def settings(self, freezing: bool) -> Iterator[None]:
        """What every call is made in; ``freezing`` folds constants and packs weights for oneDNN."""
        frozen = torch._inductor.config.patch(freezing=freezing)
        with ran_kernels.backend(self.backend), frozen:
            yield


class Ready:
    """A call without arguments, which has run and compiled.

    Args:
        make: gives the call.
        device: that it runs on.
        compiles: whether its first run compiles, which finds empty caches then.

    Attributes:
        first: what the first run returned.
        ready_seconds: of `make` and the first run.
        compile_seconds: those, less a second run's; 0 where nothing compiles.
        generated: calls of the kernels that Inductor generated for the CPU.
    """

    def __init__(self, make: Callable[[], Callable[[], Tensor]], device: str, compiles: bool):
        self._device = device
        generated = Generated()
        # Without what an earlier benchmark has compiled, which would be found again on the disk.
        with fresh_cache() if compiles else nullcontext(), generated.watching():
            start = time.perf_counter()
            self._run = make()
            self.first = self._finished()
            self.ready_seconds = time.perf_counter() - start
        self.generated = generated.calls
        start = time.perf_counter()
        self._finished()
        more = self.ready_seconds - (time.perf_counter() - start)
        self.compile_seconds = max(0.0, more) if compiles else 0.0

    def __call__(self) -> Tensor:
        return self._run()

    def _finished(self) -> Tensor:
        result = self()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return result


def measured(
    names: Sequence[str],
    prepare: Callable[[str], Ready],
    needed: Collection[str],
    device: str,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """What an entry of a result file has of every variant.

    Yields it anew with each variant that ``prepare`` has added, once those ``needed`` are there:
    every time all that are there take turns, so that what a cut leaves is comparable too. A variant
    that computes something else, for which ``prepare`` raises ValueError, has no speed; the others
    go on without it unless it is needed.
    """
    runs: dict[str, Ready] = {}
    profiles: dict[str, Any] = {}
    peaks: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            run = prepare(name)
        except ValueError as error:
            if name in needed:
                raise
            refused[name] = str(error)
            print(f"{name}: no speed, as it computes something else: {error}", file=sys.stderr)
            continue
        runs[name] = run
        profiles[name] = profile(run, device, run.generated)
        peaks[name] = peak_memory(run, device)
        if not set(needed) <= set(runs):
            continue
        yield {
            "samples": take_turns(runs, device, rounds),
            "ready_seconds": {name: run.ready_seconds for name, run in runs.items()},
            "compile_seconds": {name: run.compile_seconds for name, run in runs.items()},
            "peak_bytes": dict(peaks),
            "launches": {name: found["launches"] for name, found in profiles.items()},
            "operations": {name: found["operations"] for name, found in profiles.items()},
            **({"refused": dict(refused)} if refused else {}),
        }
