"""How the cost of inference grows with the batch, the resolution and the depth of the network.

    python -m bench.networks.scale --result scale.json

Three sweeps, each of ours and of the same network in plain PyTorch, interleaved.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import ran
from bench.compare import default_device, keep_freed_memory
from bench.results_file import Record

from .arguments import add_run_options
from .speed import compare
from .tables import scale

#: By what is varied: (network, batch, size) of each point.
SWEEPS: dict[str, list[tuple[str, int, int]]] = {
    "batch": [("attention56", batch, 224) for batch in (1, 2, 4, 8)],
    "resolution": [("attention56", 2, size) for size in (224, 288, 352, 448)],
    "depth": [(f"attention{depth}", 1, 224) for depth in (56, 92, 128, 164, 200, 236, 452)],
}


def multiply_adds(network: str, batch: int, size: Sequence[int]) -> float:
    """Of a forward pass, 10⁹: what the time is plotted against when the depth varies."""
    with torch.device("meta"):
        model = ran.create_model(network)
    return batch * ran.count_multiply_adds(model, (3, size[0], size[1])) / 1e9


def measure(
    network: str, batch: int, size: Sequence[int], **others: Any
) -> Iterator[dict[str, Any]]:
    """What an entry of a result file has beside what it was measured for: ``compare``'s arguments.

    ``sweep`` among them only says which point it is.
    """
    del others["sweep"]
    for found in compare(network, batch=batch, size=size, **others):
        del found["operations"]  # a profile a point tells nothing more here
        yield {**found, "multiply_adds": multiply_adds(network, batch, size)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.scale")
    parser.add_argument("--sweep", action="append", choices=SWEEPS, help="repeatable; default all")
    add_run_options(parser)
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    keep_freed_memory()
    record = Record("network scale", given.result)
    for sweep in given.sweep or SWEEPS:
        for network, batch, size in SWEEPS[sweep]:
            record.add(
                measure,
                sweep=sweep,
                network=network,
                direction="inference",
                batch=batch,
                size=[size, size],
                dtype="float32",
                device=device,
                rounds=given.rounds,
                variants=["plain", "ours"],
            )
    print(scale(record.content))


if __name__ == "__main__":
    main()
