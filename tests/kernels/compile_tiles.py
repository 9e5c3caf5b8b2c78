"""Compiles products with every tile that they may take, without a GPU: ``python -m`` this module.

As compile_triton.py, whose launches are those that the model of tiles chooses for a few shapes;
here it is each of `products.tiles_of`, which the model or a file of measured tiles may choose.
SHARE/OF as an argument compiles every OF-th only, from the SHARE-th on. Prints a JSON list.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .compile_triton import ARCHITECTURES, compiled

KERNELS = {
    "norm_relu_conv": "norm_relu_conv_kernel",
    "conv": "norm_relu_conv_kernel",
    "conv_gate": "norm_relu_conv_kernel",
    "gate": "norm_relu_conv_kernel",
    "gate_grad": "norm_relu_conv_kernel",
    "reduce": "norm_relu_conv_reduce_kernel",
    "grad": "norm_relu_conv_grad_kernel",
    "conv_grad": "norm_relu_conv_grad_kernel",
    "weight": "norm_relu_conv_weight_kernel",
    "conv_weight": "norm_relu_conv_weight_kernel",
}
#: Data types and how products are made of them, with the pointers to what they are made of.
WAYS = {
    "bfloat16": ("*bf16", "ieee"),
    "float16": ("*fp16", "ieee"),
    "tf32": ("*fp32", "tf32"),
    "float32": ("*fp32", "ieee"),
    "float64": ("*fp64", "ieee"),
}
SIZES = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4, "float64": 8}
#: Channels of the convolution's input and output, by what loads know of them: in packs of 16 bytes,
#: of 2 elements, and each by itself; and fewer than the smallest tile has.
CHANNELS = {
    "whole": (256, 512),
    "pairs": (254, 510),
    "odd in": (255, 512),
    "odd out": (256, 511),
    "odd": (255, 511),
    "few": (3, 5),
}
SIDE = 14  # of the images


@dataclass(frozen=True)
class Build:
    kind: str
    way: str
    channels: str
    stride: int
    tile: tuple[int, int, int, int, int]
    architecture: int
    wide: bool = False  # the normalised image is float32, the rest 16 bits


def problem_of(kind: str, way: str, channels: str, wide: bool) -> Any:
    """The `products.Problem`, with everything that its kernel may read and write."""
    from ran_kernels.triton.products import Problem

    into, out = CHANNELS[channels]
    rows, size, exact = 128 * SIDE * SIDE, SIZES[way], way == "float32"
    if kind.endswith("weight"):
        beside: dict[str, Any] = {"splits": True, "exact": exact, "wide": wide}
        return Problem(kind, out, into, rows, size, **beside)
    if KERNELS[kind] == "norm_relu_conv_kernel":
        images = 4 if kind == "gate_grad" else 2
        return Problem(kind, rows, out, into, size, images=images, exact=exact, wide=wide)
    images, numbers = {"reduce": (2, 4), "grad": (3, 6), "conv_grad": (2, 0)}[kind]
    return Problem(kind, rows, into, out, size, images=images, numbers=numbers, exact=exact)


def builds(
    ways: tuple[str, ...] = tuple(WAYS), architectures: tuple[int, ...] = ARCHITECTURES
) -> Iterator[Build]:
    """All of them."""
    from dataclasses import astuple

    from ran_kernels.triton.products import tiles_of

    for way in ways:
        for kind in KERNELS:
            # What other kernels read of a float32 image, they read after the product.
            widths = (False, True) if way in ("bfloat16", "float16") else (False,)
            normalises = kind not in ("conv", "conv_gate", "conv_grad", "conv_weight")
            for wide in widths if normalises else (False,):
                for channels in CHANNELS:
                    for stride in (1,) if kind == "conv_gate" else (1, 2):
                        for tile in tiles_of(problem_of(kind, way, channels, wide)):
                            for architecture in architectures:
                                yield Build(
                                    *(kind, way, channels, stride, astuple(tile)),
                                    *(architecture, wide),
                                )


def launch(build: Build) -> dict[str, Any]:
    """Arguments of the launch, by name."""
    from ran_kernels.triton import norm_relu_conv, tuned
    from ran_kernels.triton.products import Tile

    data, precision = WAYS[build.way]
    total = "*fp64" if build.way == "float64" else "*fp32"
    image = total if build.wide else data
    problem = problem_of(build.kind, build.way, build.channels, build.wide)
    plan = norm_relu_conv.plan_weight if problem.splits else norm_relu_conv.plan
    size = (SIDE * build.stride, SIDE * build.stride)
    if build.kind in ("reduce", "grad", "conv_grad"):
        size = (SIDE, SIDE)
    with tuned.forced(problem, Tile(*build.tile)):
        planned = plan(problem, size, build.stride, torch.device("meta"))[2]
    norm: dict[str, Any] = dict.fromkeys(("mean", "variance", "weight", "bias"), total)
    if build.kind.startswith("conv"):
        norm = dict.fromkeys(norm)
    numbers = {"EPS": 1e-5, "WIDEN": False, "PRECISION": precision} | planned | norm
    if problem.splits:
        return {"grad": data, "x": image, "parts": total, **numbers}
    numbers |= {"conv": data}
    if KERNELS[build.kind] == "norm_relu_conv_kernel":
        gate, measured = "gate" in build.kind, build.kind not in ("conv_gate", "gate_grad")
        given = {"conv_bias": build.kind == "conv_gate", "addend": not gate, "trunk": gate}
        given |= dict.fromkeys(("grad", "grad_trunk"), build.kind == "gate_grad")
        numbers |= {name: data if there else None for name, there in given.items()}
        parts: dict[str, Any] = {"means": "*fp64", "squares": total} if measured else {}
        parts = {"means": None, "squares": None, "MEASURE": measured, **parts}
        return {"x": image, "y": data, "RESIDUAL": True, **parts, **numbers}
    numbers |= {"grad": data, "VANISHES": {2: 2.0**-134}.get(SIZES[build.way], 0.0)}
    if build.kind == "reduce":
        return {"x": image, "masked": image, "parts": total, **numbers}
    numbers |= {"addend": image, "grad_x": image, "elements": 128 * SIDE * SIDE}
    sums = dict.fromkeys(("sum_grad", "sum_grad_xhat"), total)
    if build.kind == "conv_grad":
        return {"x": None, **dict.fromkeys(sums), **numbers}
    return {"x": image, **sums, **numbers}


def compile_tile(build: Build) -> dict[str, Any]:
    """What came of it; see `compile_triton.compiled`."""
    name = f"norm_relu_conv_kernels.{KERNELS[build.kind]}"
    return {"build": vars(build), **compiled(name, launch(build), build.architecture)}


def main() -> None:
    share, of = map(int, (sys.argv[1:] or ["0/1"])[0].split("/"))
    json.dump([compile_tile(build) for build in [*builds()][share::of]], sys.stdout)


if __name__ == "__main__":
    main()
