"""Inference and training steps of our networks, against the same in plain PyTorch and compiled.

    python -m bench.networks.speed --network attention92 --batch 8 --result speed.json

"plain" runs every operator of the network as its reference: the same modules, with each of this
library's operators composed of PyTorch's own. So plain PyTorch and this library's reference backend
are one thing and one column. "plain contiguous" is the same in the layout that the older
implementations use; the others are channels_last. What is compiled is also frozen for inference on
a CPU: constants folded, weights packed for oneDNN. Every round runs each variant once, so that all
see the same weather. A training step is forward, loss, backward and a step of SGD with Nesterov's
momentum; bfloat16 is autocast there, and in inference the weights' dtype too.

The result has, for every variant, the seconds of every round, from which images/s follow, the
seconds of compilation with empty caches, peak memory, a profile and the launches of a call
(``profiles.py`` says what that counts). A result file that exists is continued.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

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
from bench.results_file import Record

from .arguments import add_run_options
from .memory import training_step
from .profiles import Generated, profile
from .tables import speed
from .trained import as_trained, require_accurate

NETWORKS = ("attention56", "attention92", "cbam_resnet50", "cbam_resnext50_32x4d")
DIRECTIONS = ("inference", "training step")
DTYPES = ("float32", "bfloat16")


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
    # Without the CUDA graphs that Inductor would add, whose pool no peak of memory would show.
    "plain max-autotune": Variant("reference", mode="max-autotune-no-cudagraphs"),
    "ours": Variant("auto"),
    "ours compiled": Variant("auto", mode="default"),
}
#: Tuning takes minutes a network, and on a CPU it times only what oneDNN does already.
ONLY_ON_A_GPU = ("plain max-autotune",)


class Prepared:
    """A variant of a network, ready to run.

    Attributes:
        first: what the first call returned.
        compile_seconds: of the first call, with empty caches, less the second; 0 if eager.
        generated: calls of the kernels that Inductor generated for the CPU.
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
        generated = Generated()
        # Without what an earlier benchmark has compiled, which would be found again on the disk.
        with fresh_cache() if variant.mode else nullcontext(), generated.watching():
            start = time.perf_counter()
            self.first = self._finished()
            middle = time.perf_counter()
        self.generated = generated.calls
        again = time.perf_counter()
        self._finished()
        seconds = (middle - start) - (time.perf_counter() - again)
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
    size: Sequence[int],
    dtype: str,
    device: str,
    rounds: int,
    variants: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """What an entry of a result file has beside these arguments.

    Yields it anew with each variant that was added, those that compile last: every time all that
    are there take turns, so that what a cut leaves is comparable too.

    Raises ValueError where a variant computes something else.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    training = direction == "training step"
    model = ran.create_model(network).to(device)
    # Weights stay in float32 under autocast; inference has them in bfloat16 as well.
    x = torch.randn(batch, 3, *size, device=device, dtype=getattr(torch, dtype))
    if not training:
        model = as_trained(model, (size[0], size[1]))
        with torch.no_grad(), ran_kernels.backend("reference"):
            exact = copy.deepcopy(model).double()(x.double())
        model = model.to(x.dtype)
    y = torch.arange(batch, device=device) % 1000
    prepared: dict[str, Prepared] = {}
    profiles: dict[str, Any] = {}
    peaks: dict[str, int] = {}
    for name in sorted(variants, key=lambda name: (VARIANTS[name].mode or "", name != "plain")):
        run = prepared[name] = Prepared(model, VARIANTS[name], x, y, training)
        plain = prepared["plain"].first
        if training:
            require_close(name, run.first, plain, x.dtype)
        else:
            require_accurate(name, run.first, exact, plain)
        profiles[name] = profile(run, device, run.generated)
        peaks[name] = peak_memory(run, device)
        if "ours" not in prepared:
            continue
        turns = Turns({name: [run] for name, run in prepared.items()}, Stopwatch(device))
        turns.warm_up(2)
        for _ in range(rounds):
            turns.round()
        yield {
            "samples": turns.samples,
            "compile_seconds": {name: run.compile_seconds for name, run in prepared.items()},
            "peak_bytes": dict(peaks),
            "launches": {name: found["launches"] for name, found in profiles.items()},
            "operations": {name: found["operations"] for name, found in profiles.items()},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.speed")
    parser.add_argument("--network", action="append", help="repeatable; by default four")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="repeatable")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable")
    parser.add_argument("--batch", type=int, help="images, by default 4 on a CPU, 128 on a GPU")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; float32")
    add_run_options(parser)
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    batch = given.batch or (128 if device == "cuda" else 4)
    variants = given.variant or [v for v in VARIANTS if device == "cuda" or v not in ONLY_ON_A_GPU]
    if missing := {"plain", "ours"} - set(variants):
        parser.error(f"--variant: expected {' and '.join(sorted(missing))} among them")
    keep_freed_memory()
    record = Record("network speed", given.result)
    # Inference first, which compiles in half the time: a run may be cut.
    for dtype, direction, network in itertools.product(
        given.dtype or DTYPES[:1], given.direction or DIRECTIONS, given.network or NETWORKS
    ):
        record.add(
            compare,
            network=network,
            direction=direction,
            batch=batch,
            size=[given.size, given.size],
            dtype=dtype,
            device=device,
            rounds=given.rounds,
            variants=variants,
        )
    print(speed(record.content))


if __name__ == "__main__":
    main()
