"""What the machine can do at most: a copy's bandwidth and a matrix product's speed.

    python -m bench.ceilings --result ceilings.json

Every other figure of the same run is read against these two.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.compare import Stopwatch, Turns, default_device, keep_freed_memory
from bench.results_file import report

#: Of a side of the square matrices, and of the copied tensor, by device.
SIDE = {"cuda": 8192, "cpu": 256}
BYTES = {"cuda": 2**31, "cpu": 2**27}


def measure(device: str, rounds: int) -> dict[str, Any]:
    """Terabytes/s of a copy, reads and writes counted, and TFLOP/s of a bfloat16 product.

    The data are random: a product of zeros draws less power, and runs faster.
    """
    torch.manual_seed(0)
    side, count = SIDE[device], BYTES[device] // 4
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    runs = {"copy": [lambda: target.copy_(source)], "product": [lambda: a @ b]}
    turns = Turns(runs, Stopwatch(device))
    turns.warm_up(3)
    for _ in range(rounds):
        turns.round()
    seconds = {name: median(samples) for name, samples in turns.samples.items()}
    return {
        "device": device,
        "copy_bytes": 2 * BYTES[device],
        "product_side": side,
        "copy_tb_per_s": 2 * BYTES[device] / seconds["copy"] / 1e12,
        "product_tflop_per_s": 2 * side**3 / seconds["product"] / 1e12,
        "samples": turns.samples,
    }


def table(content: dict[str, Any]) -> str:
    """A line for each ceiling, named with the chip."""
    (result,) = content["results"]
    chip = content["machine"]["chip"]
    return (
        f"{chip}: a copy moves {result['copy_tb_per_s']:.2f} TB/s, reads and writes counted\n"
        f"{chip}: a bfloat16 product of side {result['product_side']} runs at "
        f"{result['product_tflop_per_s']:.0f} TFLOP/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    results = [measure(given.device or default_device(), given.rounds)]
    report("ceilings", results, table, given.result)


if __name__ == "__main__":
    main()
