"""What ``ran.deploy`` gains: inference of deployed networks against PyTorch's own ways.

    python -m bench.networks.deploy --network attention56 --batch 4 --result deploy.json

"contiguous" and "channels_last" are the network in eager PyTorch, every operator as its reference;
"compiled" is the latter through torch.compile with freezing, which folds and packs as well;
"max-autotune", on CUDA alone, is that with every kernel tuned, which takes minutes a network, and
without Inductor's own CUDA graphs, whose pool no peak of memory would show.
"our kernels" is the network with this library's operators, "folded" the deployed network with every
convolution called by itself, "deployed" all of it. "fused gate", on CUDA alone, is that with every
mask made in the kernel of its last convolution: the default once it is the quicker. Every round
runs each variant once, so that all see the same weather. Whose logits disagree prints no speed.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
)
from bench.results_file import Record
from ran.serving.layers import Conv

from .arguments import add_run_options
from .profiles import profile
from .tables import PROFILED, deployed
from .trained import as_trained, require_accurate

NETWORKS = ("attention56", "attention92", "cbam_resnet50")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: With freezing on a CPU, and what Inductor chooses by itself; tuned for minutes a network.
COMPILED = {"compiled": "default", "max-autotune": "max-autotune-no-cudagraphs"}
PLAIN = ("contiguous", "channels_last", "our kernels", *COMPILED)
VARIANTS = (*PLAIN, "folded", "fused gate", "deployed")
#: Elsewhere they are what others are, or tune what oneDNN does already.
ONLY_ON_A_GPU = ("fused gate", "max-autotune")
Network = Callable[[Tensor], Tensor]


def _eager(model: nn.Module, x: Tensor, layout: torch.memory_format) -> tuple[nn.Module, Tensor]:
    model = copy.deepcopy(model).to(x.dtype).to(memory_format=layout)
    return model, x.contiguous(memory_format=layout)


def prepare(name: str, model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call without arguments that infers x in this way; its first has packed and compiled."""
    if name not in PLAIN:
        network: Network = ran.deploy(model, dtype=x.dtype, fuse_gate=name == "fused gate")
        if name == "folded":
            for module in network.modules():  # type: ignore[attr-defined]
                if isinstance(module, Conv):
                    module._onednn = False
        images = x.contiguous(memory_format=torch.channels_last)
    else:
        contiguous = name == "contiguous"
        layout = torch.contiguous_format if contiguous else torch.channels_last
        network, images = _eager(model, x, layout)
        if name in COMPILED:
            network = torch.compile(network, mode=COMPILED[name])
    backend = "auto" if name == "our kernels" or name not in PLAIN else "reference"

    @torch.no_grad()
    def run() -> Tensor:
        frozen = torch._inductor.config.patch(freezing=name in COMPILED)
        with ran_kernels.backend(backend), frozen:
            return network(images)

    run()
    return run


def compare(
    network: str,
    batch: int,
    size: Sequence[int],
    dtype: str,
    device: str,
    rounds: int,
    variants: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """What an entry of a result file has beside these arguments, anew with each variant added.

    What compiles comes last. Raises ValueError where a variant computes something else.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = as_trained(ran.create_model(network).to(device), (size[0], size[1]))
    x = torch.randn(batch, 3, *size, device=device, dtype=DTYPES[dtype])
    with torch.no_grad(), ran_kernels.backend("reference"):
        exact = copy.deepcopy(model).double()(x.double())
        own = copy.deepcopy(model).to(x.dtype)(x)
    runs: dict[str, Callable[[], Tensor]] = {}
    ready: dict[str, float] = {}
    peaks: dict[str, int] = {}
    profiles: dict[str, Any] = {}
    for name in sorted(variants, key=COMPILED.__contains__):
        # Without what an earlier benchmark has compiled, which would be found again on the disk.
        with fresh_cache() if name in COMPILED else nullcontext():
            start = time.perf_counter()
            run = runs[name] = prepare(name, model, x)
            ready[name] = time.perf_counter() - start
        require_accurate(name, run(), exact, own)
        peaks[name] = peak_memory(run, device)
        if name in PROFILED:
            profiles[name] = profile(run, device, generated=0)["operations"]
        if not {"channels_last", "deployed"} <= set(runs):
            continue
        turns = Turns({name: [run] for name, run in runs.items()}, Stopwatch(device))
        turns.warm_up(1)
        for _ in range(rounds):
            turns.round()
        yield {
            "samples": turns.samples,
            "ready_seconds": dict(ready),
            "peak_bytes": dict(peaks),
            "operations": dict(profiles),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.deploy")
    parser.add_argument("--network", action="append", help="repeatable; by default three")
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1, 4 and 16")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; both")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable; all")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    add_run_options(parser)
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    variants = given.variant or [v for v in VARIANTS if device == "cuda" or v not in ONLY_ON_A_GPU]
    if missing := {"channels_last", "deployed"} - set(variants):
        parser.error(f"--variant: expected {' and '.join(sorted(missing))} among them")
    keep_freed_memory()
    record = Record("network deploy", given.result)
    for network in given.network or NETWORKS:
        for dtype in given.dtype or DTYPES:
            for batch in given.batch or (1, 4, 16):
                record.add(
                    compare,
                    network=network,
                    batch=batch,
                    size=[given.size, given.size],
                    dtype=dtype,
                    device=device,
                    rounds=given.rounds,
                    variants=variants,
                )
    print(deployed(record.content))


if __name__ == "__main__":
    main()
