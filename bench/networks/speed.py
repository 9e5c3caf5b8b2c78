"""Inference and training steps of our networks, against the same in plain PyTorch and compiled.

    python -m bench.networks.speed --network attention92 --batch 8 --result speed.json

"plain" runs every operator of the network as its reference: the same modules, with each of this
library's operators composed of PyTorch's own. So plain PyTorch and this library's reference backend
are one thing and one column. "plain contiguous" is the same in the layout that the older
implementations use; the others are channels_last. What is compiled is also frozen for inference on
a CPU: constants folded, weights packed for oneDNN. Every round runs each variant once, so that all
see the same weather. A training step is forward, loss, backward and a step of SGD with Nesterov's
momentum; bfloat16 is autocast there, and in inference the weights' dtype too. "ours norms" keeps
what is normalised alone, and computes the result again.

The result has, for every variant, the seconds of every round, from which images/s follow, the
seconds of compilation with empty caches, peak memory, a profile and the launches of a call
(``profiles.py`` says what that counts). A result file that exists is continued.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import default_device, keep_freed_memory, require_close
from bench.results_file import Record

from .arguments import DTYPES, add_options, variants_of
from .memory import training_step
from .tables import speed
from .trained import as_trained, require_accurate
from .variants import Ready, Variant, measured

NETWORKS = ("attention56", "attention92", "cbam_resnet50", "cbam_resnext50_32x4d")
DIRECTIONS = ("inference", "training step")
VARIANTS = {
    "plain contiguous": Variant("reference", channels_last=False),
    "plain": Variant("reference"),
    "plain compiled": Variant("reference", mode="default"),
    # Without the CUDA graphs that Inductor would add, whose pool no peak of memory would show.
    "plain max-autotune": Variant("reference", mode="max-autotune-no-cudagraphs"),
    "ours": Variant("auto"),
    "ours norms": Variant("auto", recomputed="norms"),
    "ours norm_conv": Variant("auto", norm_conv=True),
    "ours compiled": Variant("auto", mode="default"),
}
#: Tuning takes minutes a network, and on a CPU it times only what oneDNN does already; without
#: Triton, norms stay outside of convolutions.
ONLY_ON_A_GPU = ("plain max-autotune", "ours norm_conv")
NEEDED = ("plain", "ours")


def prepare(
    variant: Variant, model: nn.Module, x: Tensor, y: Tensor, training: bool
) -> Callable[[], Tensor]:
    """A call without arguments: a training step, which gives its loss, or an inference."""
    run, x = variant.of(model, x)
    # Freezing is for inference on a CPU: it folds constants and packs weights for oneDNN.
    freezing = not training and x.device.type == "cpu"

    @contextmanager
    def settings() -> Iterator[None]:
        low = torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)
        with variant.settings(freezing), low:
            yield

    @torch.no_grad()
    def infer() -> Tensor:
        with settings():
            out: Tensor = run(x)
            return out

    if not training:
        return infer
    optimizer = torch.optim.SGD(run.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> Tensor:
        # Autocast covers the forward pass and the loss, as PyTorch advises; `training_step` does
        # the backward in it too, which changes nothing: its operators' dtypes are fixed by then.
        with settings():
            loss = training_step(run, x, y)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


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
    """What an entry of a result file has beside these arguments, as ``measured`` yields it.

    What compiles comes last. Raises ValueError where a variant computes something else.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    training = direction == "training step"
    model = ran.create_model(network).to(device).train()
    # Weights stay in float32 under autocast; inference has them in bfloat16 as well.
    x = torch.randn(batch, 3, *size, device=device, dtype=getattr(torch, dtype))
    if not training:
        model = as_trained(model, (size[0], size[1]))
        with torch.no_grad(), ran_kernels.backend("reference"):
            exact = copy.deepcopy(model).double()(x.double())
        model = model.to(x.dtype)
    y = torch.arange(batch, device=device) % 1000
    firsts: dict[str, Tensor] = {}

    def ready(name: str) -> Ready:
        make = partial(prepare, VARIANTS[name], model, x, y, training)
        run = Ready(make, device, VARIANTS[name].mode is not None)
        firsts[name] = run.first
        if training:
            require_close(name, run.first, firsts["plain"], x.dtype)
        else:
            require_accurate(name, run.first, exact, firsts["plain"])
        return run

    # Inference computes nothing again. Plain first: the others are held to it.
    differ = (name for name in variants if training or not VARIANTS[name].recomputed)
    names = sorted(differ, key=lambda name: (VARIANTS[name].mode or "", name != "plain"))
    yield from measured(names, ready, NEEDED, device, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.speed")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="repeatable")
    parser.add_argument("--batch", type=int, help="images, by default 4 on a CPU, 128 on a GPU")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; float32")
    add_options(parser, NETWORKS, VARIANTS)
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    variants = variants_of(parser, given, VARIANTS, ONLY_ON_A_GPU, NEEDED)
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
            batch=given.batch or (128 if device == "cuda" else 4),
            size=[given.size, given.size],
            dtype=dtype,
            device=device,
            rounds=given.rounds,
            variants=variants,
        )
    print(speed(record.content))


if __name__ == "__main__":
    main()
