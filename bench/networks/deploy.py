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
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import default_device, keep_freed_memory
from bench.results_file import Record
from ran.serving.layers import Conv

from .arguments import DTYPES, add_options, variants_of
from .tables import deployed
from .trained import as_trained, require_accurate
from .variants import Ready, Variant, measured

NETWORKS = ("attention56", "attention92", "cbam_resnet50")
#: Ways that the network itself is run in. What is compiled is frozen too; without the CUDA graphs
#: that Inductor would add, tuning takes minutes a network.
PLAIN = {
    "contiguous": Variant("reference", channels_last=False),
    "channels_last": Variant("reference"),
    "our kernels": Variant("auto"),
    "compiled": Variant("reference", mode="default"),
    "max-autotune": Variant("reference", mode="max-autotune-no-cudagraphs"),
}
VARIANTS = (*PLAIN, "folded", "fused gate", "deployed")
COMPILED = tuple(name for name, variant in PLAIN.items() if variant.mode)
#: Elsewhere they are what others are, or tune what oneDNN does already.
ONLY_ON_A_GPU = ("fused gate", "max-autotune")
NEEDED = ("channels_last", "deployed")


def prepare(name: str, model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call without arguments that infers x in this way; its first run packs and compiles."""
    variant = PLAIN.get(name, Variant("auto"))
    if name in PLAIN:
        network, images = variant.of(copy.deepcopy(model).to(x.dtype), x)
    else:
        network = ran.deploy(model, dtype=x.dtype, fuse_gate=name == "fused gate")
        if name == "folded":
            for module in network.modules():
                if isinstance(module, Conv):
                    module._onednn = False
        images = x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> Tensor:
        with variant.settings(freezing=name in COMPILED):
            out: Tensor = network(images)
            return out

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
    """What an entry of a result file has beside these arguments, as ``measured`` yields it.

    What compiles comes last. Raises ValueError where a variant computes something else.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = as_trained(ran.create_model(network).to(device), (size[0], size[1]))
    x = torch.randn(batch, 3, *size, device=device, dtype=getattr(torch, dtype))
    with torch.no_grad(), ran_kernels.backend("reference"):
        exact = copy.deepcopy(model).double()(x.double())
        own = copy.deepcopy(model).to(x.dtype)(x)

    def ready(name: str) -> Ready:
        run = Ready(partial(prepare, name, model, x), device, name in COMPILED)
        require_accurate(name, run.first, exact, own)
        return run

    names = sorted(variants, key=COMPILED.__contains__)
    yield from measured(names, ready, NEEDED, device, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.deploy")
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1, 4 and 16")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; both")
    add_options(parser, NETWORKS, VARIANTS)
    given = parser.parse_args(arguments)
    variants = variants_of(parser, given, VARIANTS, ONLY_ON_A_GPU, NEEDED)
    keep_freed_memory()
    record = Record("network deploy", given.result)
    for network, dtype, batch in itertools.product(
        given.network or NETWORKS, given.dtype or DTYPES, given.batch or (1, 4, 16)
    ):
        record.add(
            compare,
            network=network,
            batch=batch,
            size=[given.size, given.size],
            dtype=dtype,
            device=given.device or default_device(),
            rounds=given.rounds,
            variants=variants,
        )
    print(deployed(record.content))


if __name__ == "__main__":
    main()
