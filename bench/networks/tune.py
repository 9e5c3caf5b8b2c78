"""Tiles of the products in a network's training step, measured on the GPU at hand.

    RAN_TILES=tiles.json python -m bench.networks.tune --network cbam_resnet50 --batch 128

Writes to the file that `ran_kernels.tune` names, and goes on where it was cut. Later runs that are
to take these tiles need the same RAN_TILES, or none at both times.
"""

import argparse
from collections.abc import Sequence

import torch

import ran
import ran_kernels
from bench.compare import default_device

from .memory import training_step
from .speed import NETWORKS


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.tune")
    parser.add_argument("--network", action="append", help="repeatable; by default four")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--size", type=int, default=224, help="height and width")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default=default_device())
    given = parser.parse_args(arguments)
    dtype = getattr(torch, given.dtype)
    for name in given.network or NETWORKS:
        model = ran.create_model(name, norm_conv=True).to(given.device).train()
        model = model.to(memory_format=torch.channels_last)
        shape = (given.batch, 3, given.size, given.size)
        x = torch.randn(shape, device=given.device).contiguous(memory_format=torch.channels_last)
        y = torch.arange(given.batch, device=given.device) % 1000

        def step(model: torch.nn.Module = model, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            # bfloat16 is autocast, as in the benchmark of speed.
            low = torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)
            with low:
                training_step(model, x, y)

        for product, tile in ran_kernels.tune(step, given.device).items():
            print(f"{name}: {product}: {tile}")


if __name__ == "__main__":
    main()
