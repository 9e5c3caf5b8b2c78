"""How the cost of inference grows with the batch, the resolution and the depth of the network.

    python -m bench.networks.scale --result scale.json

Three sweeps, each of ours and of the same network in plain PyTorch, interleaved.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ran
from bench.compare import default_device, keep_freed_memory

from .results import content, write
from .speed import compare
from .tables import scale

#: By what is varied: (network, batch, size) of each point.
SWEEPS: dict[str, list[tuple[str, int, int]]] = {
    "batch": [("attention56", batch, 224) for batch in (1, 2, 4, 8)],
    "resolution": [("attention56", 2, size) for size in (224, 288, 352, 448)],
    "depth": [(f"attention{depth}", 1, 224) for depth in (56, 92, 128, 164, 200, 236, 452)],
}


def multiply_adds(network: str, batch: int, size: int) -> float:
    """Of a forward pass, 10⁹: what the time is plotted against when the depth varies."""
    with torch.device("meta"):
        model = ran.create_model(network)
    return batch * ran.count_multiply_adds(model, (3, size, size)) / 1e9


def measure(sweep: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """Entries of a result file for every point of a sweep."""
    entries = []
    for network, batch, size in SWEEPS[sweep]:
        variants = ("plain", "ours")
        entry = compare(network, "inference", batch, size, torch.float32, device, rounds, variants)
        entry["sweep"] = sweep
        entry["multiply_adds"] = multiply_adds(network, batch, size)
        del entry["operations"]  # a profile a point tells nothing more here
        entries.append(entry)
    return entries


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.scale")
    parser.add_argument("--sweep", action="append", choices=SWEEPS, help="repeatable; default all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write, again after each sweep")
    given = parser.parse_args(arguments)
    device = given.device or default_device()
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    for sweep in given.sweep or SWEEPS:
        results += measure(sweep, device, given.rounds)
        if given.result:
            write(given.result, "network scale", results)
    print(scale(content("network scale", results)))


if __name__ == "__main__":
    main()
